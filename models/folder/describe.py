"""A model's folder → its manifest: the client's inputs, the graph's inputs, and the head on the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.models.folder.locate import CONFIG, TOKENIZER
from foreseen.models.graphs.hf import folder as builder
from foreseen.models.graphs.hf import heads
from foreseen.models.graphs.hf.config import Config, labels, read
from foreseen.models.graphs.hf.head import TaskHead, dense_layer, find_head, head_of, is_pair
from foreseen.models.graphs.hf.weights import INDEX, ONE_FILE, Weights, open_weights, shards
from foreseen.modelspec.manifest import (
    BATCH,
    ClientInput,
    ClientOutput,
    ClientSignature,
    Dim,
    Manifest,
    ModelInput,
    ModelOutput,
    ModelSignature,
    Tokenizer,
)
from foreseen.modelspec.manifest.openai_section import OpenAISection
from foreseen.modelspec.manifest.source import Source

TOKENS = "tokens"
IDS: tuple[Dim, ...] = (BATCH, TOKENS)
MOST_SENSIBLE = 10**6  # tokenizer_config.json writes 10³⁰ for "no limit"
QUERY, DOCUMENT, TEXT = "query", "document", "text"
EXAMPLES = {
    TEXT: "A man is eating food.",
    QUERY: "What is the man eating?",
    DOCUMENT: "A man is eating a piece of bread.",
}
FOLDER = "folder"


class Described(Struct, frozen=True):
    """A manifest, and notes on the folder for its comments."""

    manifest: Manifest
    kind: str
    """In words: `BertModel: mean pooling, length 1`."""
    prompts: dict[str, str]
    """Of config_sentence_transformers.json, where a default one is put before every text and so `[openai]` has none."""
    files: dict[str, str] = {}
    """File → sha256 of what the build reads."""


def describe(folder: Path, name: str, pair: bool | None) -> Described:
    """The manifest of a folder. `pair`: whether a classifier scores (query, document); None: decided by the folder.

    Raises SetupError naming the file and the field that cannot be built.
    """
    config = read(folder / CONFIG)
    family = builder.family(config)
    whole = open_weights(folder)
    head = find_head(folder, config)
    pair = (head.task == "classification" and is_pair(folder, config)) if pair is None else pair
    if pair and head.task != "classification":
        raise SetupError("--pair: is for sequence classification")
    prompts, default = _prompts(folder)
    by_request = head.task == "embedding" and default is None  # a caller's prompt would stand before the default one
    types = "token_type_ids" if pair and _has_types(folder, whole.under(""), config) else None
    tokenizer = Tokenizer(
        "input_ids",
        max_tokens(folder, family.module.longest(config)),
        pair=DOCUMENT if pair else None,
        types=types,
        prompt=prompts.get(default or "") or None,
    )
    answered, names = _answered(folder, head, config, whole)
    inputs = _texts(folder, tokenizer)
    manifest = Manifest(
        name=name,
        model=_signature(config, types, answered),
        source=Source("folder", folder=FOLDER, options=msgspec.to_builtins(head)),
        client=ClientSignature(inputs, (ClientOutput(answered.name, answered.datatype, answered.shape, names),)),
        example={spec.name: [EXAMPLES[spec.name]] for spec in inputs},
        openai=OpenAISection(prompts=prompts) if by_request else OpenAISection(),
    )
    return Described(manifest, _words(config, head, pair), {} if by_request else prompts)


def max_tokens(folder: Path, room: int) -> int:
    """The length limit of rows: the least of sentence-transformers', the tokenizer's and the positions'."""
    said = [room]
    for file, field in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        value = read(folder / file).get(field) if (folder / file).is_file() else None
        if isinstance(value, (int, float)) and 0 < value < MOST_SENSIBLE:
            said.append(int(value))
            break  # sentence-transformers' own limit has precedence
    return min(said)


def read_by_build(folder: Path, manifest: Manifest) -> list[str]:
    """The files of a folder that the builder and the tokenizer read. Everything else is in the manifest."""
    assert manifest.source is not None
    weights = [ONE_FILE] if (folder / ONE_FILE).is_file() else [INDEX, *shards(folder)]
    dense = head_of(manifest.source.options).dense
    return [CONFIG, TOKENIZER, *weights, *(f"{name}/{file}" for name in dense for file in (CONFIG, ONE_FILE))]


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """Prompts by name, and the name of the one that is put before every text."""
    path = folder / "config_sentence_transformers.json"
    said = read(path) if path.is_file() else Config({})
    prompts, default = said.get("prompts") or {}, said.get("default_prompt_name")
    if not isinstance(prompts, dict) or any(not isinstance(text, str) for text in prompts.values()):
        raise said.error("prompts", "is not names and texts")
    return dict(prompts), default if prompts.get(default or "") else None


def _has_types(folder: Path, whole: Weights, config: Config) -> bool:
    """Whether pairs have token types: the model has more than one, and its tokenizer gives them."""
    inner = builder.encoder_weights(whole, builder.family(config))
    name = "embeddings.token_type_embeddings.weight"
    if name not in inner or inner.shape(name)[0] < 2:
        return False
    path = folder / "tokenizer_config.json"
    given = read(path).get("model_input_names") if path.is_file() else None
    return given is None or "token_type_ids" in given


def _answered(folder: Path, head: TaskHead, config: Config, whole: Weights) -> tuple[ModelOutput, tuple[str, ...]]:
    """The output, and the names of its last axis."""
    if head.task == "embedding":
        width = builder.family(config).module.hidden(config) * len(head.pooling)
        for name in head.dense:
            layer = dense_layer(folder, name)
            if layer.inputs != width:
                raise SetupError(f"{name}/config.json: in_features is {layer.inputs}, it gets {width}")
            width = layer.outputs
        return ModelOutput("embedding", "FP32", (BATCH, width)), ()
    names = labels(config)
    count = heads.check_labels(whole, config, names)
    shape: tuple[Dim, ...] = (BATCH, TOKENS, count) if head.task == "tokens" else (BATCH, count)
    return ModelOutput("logits", "FP32", shape), names if count > 1 else ()


def _texts(folder: Path, tokenizer: Tokenizer) -> tuple[ClientInput, ...]:
    path = folder / "sentence_bert_config.json"
    lower: Literal["lower"] | None = "lower" if path.is_file() and read(path).flag("do_lower_case", False) else None
    if tokenizer.pair is None:
        return (ClientInput(TEXT, "BYTES", (BATCH,), tokenizer=tokenizer, case=lower),)
    return (
        ClientInput(QUERY, "BYTES", (BATCH,), tokenizer=tokenizer, case=lower),
        ClientInput(DOCUMENT, "BYTES", (BATCH,), case=lower),
    )


def _signature(config: Config, types: str | None, answered: ModelOutput) -> ModelSignature:
    padding = config.get("pad_token_id")
    ids = ModelInput("input_ids", "INT64", IDS, pad=padding if isinstance(padding, int) else 0)
    inputs = [ids, ModelInput("attention_mask", "INT64", IDS, role="mask", of=ids.name)]
    if types is not None:
        inputs.append(ModelInput(types, "INT64", IDS))
    return ModelSignature(tuple(inputs), (answered,))


def _words(config: Config, head: TaskHead, pair: bool) -> str:
    architecture: Any = config.get("architectures") or [config.text("model_type")]
    if head.task == "classification":
        what = "scores a query and a document" if pair else "classifies a text"
    elif head.task == "tokens":
        what = "classifies every token"
    else:
        parts = [f"{' + '.join(head.pooling)} pooling", *(f"dense layer {name}" for name in head.dense)]
        what = ", ".join([*parts, *(["length 1"] if head.normalize else [])])
    return f"{architecture[0]}: {what}"
