"""The builder `folder`: `config.json`, weights and `source.options` → the fp32 graph of a Hugging Face model.

Inputs: `input_ids` INT64 [rows, tokens], `attention_mask` and, where the manifest has it, `token_type_ids`. Output: the
manifest's first, `embedding` FP32 [rows, d] or `logits` FP32 [rows, labels] or [rows, tokens, labels].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from msgspec import Struct
from onnx import ModelProto

from foreseen.errors import SetupError
from foreseen.models.graphs.encoder import Sizes
from foreseen.models.graphs.graph import Graph
from foreseen.models.graphs.hf import bert, deberta, decoder, heads, modernbert
from foreseen.models.graphs.hf.config import Config, read
from foreseen.models.graphs.hf.head import TaskHead, head_of
from foreseen.models.graphs.hf.weights import Weights, open_weights
from foreseen.models.graphs.hf.writer import EncoderOptions, Writer
from foreseen.modelspec.manifest import Manifest


class Family(Struct, frozen=True):
    """A module that writes an architecture, and what `transformers` puts before its tensors' names under a head."""

    module: ModuleType
    prefix: str


FAMILIES = {
    "bert": Family(bert, "bert."),
    "electra": Family(bert, "electra."),
    "roberta": Family(bert, "roberta."),
    "xlm-roberta": Family(bert, "roberta."),
    "camembert": Family(bert, "roberta."),
    "mpnet": Family(bert, "mpnet."),
    "distilbert": Family(bert, "distilbert."),
    "deberta-v2": Family(deberta, "deberta."),
    "modernbert": Family(modernbert, "model."),
    "qwen3": Family(decoder, "model."),
    "qwen2": Family(decoder, "model."),
}
"""`model_type` of config.json → the module that writes its graph."""


def parts(folder: Path) -> int:
    """How many tensors the weights have, for the progress."""
    return sum(1 for _ in open_weights(folder))


def make(manifest: Manifest, folder: Path, advance: Callable[[], None] = lambda: None) -> ModelProto:
    """The fp32 graph; `advance` is called for every tensor that was read.

    Raises SetupError naming the file and the field or tensor that does not fit.
    """
    config = read(folder / "config.json")
    kind = family(config)
    head = head_of(manifest.source.options if manifest.source else {})
    whole = open_weights(folder, advance)
    weights = encoder_weights(whole, kind)
    types = any(spec.name == "token_type_ids" for spec in manifest.model.inputs)
    graph = Graph()
    mask = graph.add("Cast", "attention_mask", to=1)
    x = kind.module.tokens(graph, weights, EncoderOptions(config, longest(manifest, config), types), mask)
    _headed(graph, (weights, whole), x, mask, (head, config, folder), manifest.model.outputs[0].name)
    return graph.model(manifest.model)


def family(config: Config) -> Family:
    found = FAMILIES.get(config.text("model_type"))
    if found is None:
        raise config.error("model_type", f"{config.text('model_type')!r} is not one of {', '.join(sorted(FAMILIES))}")
    return found


def encoder_weights(whole: Weights, kind: Family) -> Weights:
    """The encoder's own tensors: under their prefix where the file holds a head as well."""
    inner = whole.under(kind.prefix)
    return inner if next(iter(inner), None) is not None else whole


def longest(manifest: Manifest, config: Config) -> int:
    """The longest row: what the tokenizer cuts texts to, which the table of positions must have room for."""
    room: int = family(config).module.longest(config)
    wanted = max((i.tokenizer.max_tokens for i in manifest.seen.inputs if i.tokenizer is not None), default=room)
    if wanted > room:
        raise SetupError(f"tokenizer.max_tokens: {wanted} tokens, config.json has positions for {room}")
    return wanted


def _headed(
    graph: Graph, found: tuple[Weights, Weights], x: str, mask: str, of: tuple[TaskHead, Config, Path], output: str
) -> None:
    (weights, whole), (head, config, folder) = found, of
    if head.task == "embedding":
        heads.embedding(graph, x, mask, head, folder, output)
        return
    name = "norm_eps" if "modernbert" in config.text("model_type") else "layer_norm_eps"
    writer = Writer(graph, weights, Sizes(0, 0, 0, config.real(name, 1e-5)), "gelu")
    if head.task == "classification":
        heads.classified(writer, whole, x, mask, config, output)
    else:
        heads.tagged(writer, whole, x, config, output)
