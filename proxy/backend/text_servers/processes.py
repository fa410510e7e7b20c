"""Kind of a text server (embed, rerank, classify) → its client."""

from __future__ import annotations

from collections.abc import Mapping

from foreseen.proxy.backend.text_servers.embedding_process import EmbeddingProcess
from foreseen.proxy.backend.text_servers.entry_processes import EntryProcess, LabelProcess, SparseProcess
from foreseen.proxy.backend.text_servers.pair_process import PairProcess
from foreseen.proxy.backend.text_servers.text_process import TextProcess
from foreseen.proxy.backend.text_servers.text_server import Task

PROCESSES: Mapping[Task, type[TextProcess]] = {
    one.task: one for one in (EmbeddingProcess, EntryProcess, SparseProcess, PairProcess, LabelProcess)
}
