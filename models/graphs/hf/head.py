"""The head on a folder's encoder: pooling, dense layers, a norm, or a classifier.

Sources: sentence-transformers' `modules.json`, `1_Pooling/config.json`, `2_Dense/config.json`, and the class that
`config.json` names under `architectures`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.models.graphs.hf.config import Config, labels, read, read_json

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""sentence-transformers before 5: a flag for each, joined in this order."""
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "linear",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
Task = Literal["embedding", "classification", "tokens"]


class TaskHead(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`source.options` of a folder: the head built on the encoder's token vectors."""

    task: Task = "embedding"
    pooling: tuple[str, ...] = ()
    """Poolings that are concatenated into one vector: cls, mean, lasttoken, …; for embeddings only."""
    dense: tuple[str, ...] = ()
    """Sub-folders with a config.json and weights of a linear layer after the pooling."""
    normalize: bool = False
    """Vectors of length 1."""


class Dense(Struct, frozen=True):
    """`2_Dense/config.json`."""

    inputs: int
    outputs: int
    activation: str


def head_of(options: dict[str, Any]) -> TaskHead:
    """The head that `source.options` declares. Raises SetupError naming the option."""
    try:
        head = msgspec.convert(options, TaskHead)
    except msgspec.ValidationError as error:
        raise SetupError(f"source.options: {error}") from None
    for mode in head.pooling:
        if mode not in POOLINGS:
            raise SetupError(f"source.options.pooling: {mode!r} is not one of {', '.join(POOLINGS)}")
    if (head.task == "embedding") != bool(head.pooling):
        raise SetupError("source.options.pooling: an embedding needs one, and nothing else takes one")
    return head


def find_head(folder: Path, config: Config) -> TaskHead:
    """The head of a folder: listed in `modules.json`, or named by the architecture."""
    named = " ".join(map(str, config.get("architectures") or ()))
    if "ForSequenceClassification" in named:
        return TaskHead("classification")
    if "ForTokenClassification" in named:
        return TaskHead("tokens")
    if (folder / "modules.json").is_file():
        return _of_modules(folder, read_json(folder / "modules.json", list[dict[str, Any]]))
    if "ForCausalLM" in named or named.endswith("Model") or "ForMaskedLM" in named or not named:
        return TaskHead(pooling=("mean",))  # what sentence-transformers makes of a folder without modules.json
    raise config.error("architectures", f"{named}: no head of that kind can be built")


def is_pair(folder: Path, config: Config) -> bool:
    """Whether the classifier scores (query, document): what sentence-transformers' CrossEncoder saves, or one label."""
    if any(config.get(name) is not None for name in ("sentence_transformers", "sbert_ce_default_activation_function")):
        return True
    saved = folder / "config_sentence_transformers.json"
    if saved.is_file() and read(saved).get("model_type") == "CrossEncoder":
        return True
    return len(labels(config)) == 1


def dense_layer(folder: Path, name: str) -> Dense:
    """One of `TaskHead.dense`."""
    said = read(folder / name / "config.json")
    said.refuse("module_input_name", "sentence_embedding")
    said.refuse("use_residual", False)
    activation = said.text("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        raise said.error("activation_function", f"is {activation!r}, not one of {', '.join(ACTIVATIONS)}")
    return Dense(said.number("in_features"), said.number("out_features"), ACTIVATIONS[activation])


def _of_modules(folder: Path, modules: list[dict[str, Any]]) -> TaskHead:
    head = TaskHead()
    for module in modules:
        kind, path = str(module.get("type", "")).rsplit(".", 1)[-1], str(module.get("path", ""))
        if kind == "Transformer" and path in ("", "0_Transformer"):
            continue
        if head.normalize:
            raise SetupError(f"modules.json: {kind} after Normalize cannot be built")
        if kind == "Pooling" and not head.pooling:
            head = msgspec.structs.replace(head, pooling=_pooling(read(folder / path / "config.json")))
        elif kind == "Dense" and head.pooling:
            dense_layer(folder, path)
            head = msgspec.structs.replace(head, dense=(*head.dense, path))
        elif kind == "Normalize" and head.pooling:
            head = msgspec.structs.replace(head, normalize=True)
        else:
            raise SetupError(f"modules.json: the module {kind} ({path or 'first'}) cannot be built here")
    if not head.pooling:
        raise SetupError("modules.json: lists no Pooling; only pooled sentence vectors can be built")
    return head


def _pooling(said: Config) -> tuple[str, ...]:
    modes = said.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in OLD_FLAGS.items() if said.flag(flag, False)] or ["mean"]
    listed = (modes,) if isinstance(modes, str) else tuple(map(str, modes))
    if unknown := set(listed) - set(POOLINGS):
        raise said.error("pooling_mode", f"{sorted(unknown)} cannot be built; there are {', '.join(POOLINGS)}")
    if said.get("include_prompt") is False:
        raise said.error("include_prompt", "false (prompt tokens left out of the mean) cannot be built")
    return listed
