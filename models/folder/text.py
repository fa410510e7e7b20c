"""A folder's manifest → `model.toml` with its comments, short enough to be read."""

from __future__ import annotations

from typing import Any

import msgspec

from foreseen.models.folder.describe import Described
from foreseen.models.inspect.probe import ProbeVerdict
from foreseen.modelspec.manifest import ClientInput, ClientOutput, ModelInput, ModelOutput, Tokenizer
from foreseen.modelspec.manifest.openai_section import OpenAISection


def text_of(described: Described, found: ProbeVerdict, precision: str) -> str:
    """The file's whole text. `found` is what the probe measured, `precision` the first candidate."""
    manifest, source = described.manifest, described.manifest.source
    assert source is not None
    options = ", ".join(f"{name} = {_value(value)}" for name, value in source.options.items())
    parts = [
        f"# Written by `foreseen models add`. {described.kind}.",
        f"name = {_value(manifest.name)}",
        "# Candidates in order of preference: fp32, int8-rowwise, matmul-nbits, matmul-nbits-4, int8-dynamic;",
        "# for GPUs fp16, bf16, int8-rowwise-s8, matmul-nbits.",
        f"precisions = [{_value(precision)}]\n",
        f'[source]\nbuilder = "folder"\nfolder = {_value(source.folder)} # beside this file',
        f"options = {{ {options} }}\n",
        "[source.files] # and their sha256",
        *(f"{_value(name)} = {_value(sha256)}" for name, sha256 in described.files.items()),
        "",
        *(_table("client.inputs", spec, _client(spec)) for spec in manifest.seen.inputs),
        *_prompts(described),
        *(_table("client.outputs", spec, _labels(spec)) for spec in manifest.seen.outputs),
        *(_table("model.inputs", spec, _model(spec)) for spec in manifest.model.inputs),
        *(_table("model.outputs", spec, []) for spec in manifest.model.outputs),
        "[example]",
        *(f"{name} = {_value(data)}" for name, data in manifest.example.items()),
        "",
        *_openai(manifest.openai),
        _independence(found),
    ]
    return "\n".join(parts)


def _table(kind: str, spec: ClientInput | ClientOutput | ModelInput | ModelOutput, more: list[str]) -> str:
    lines = [f"[[{kind}]]", f"name = {_value(spec.name)}", f"datatype = {_value(spec.datatype)}"]
    return "\n".join([*lines, f"shape = {_value(list(spec.shape))}", *more, ""])


def _client(spec: ClientInput) -> list[str]:
    lines = [] if spec.case is None else [f"case = {_value(spec.case)}"]
    return lines if spec.tokenizer is None else [*lines, f"tokenizer = {_tokenizer(spec.tokenizer)}"]


def _tokenizer(step: Tokenizer) -> str:
    said: dict[str, Any] = {"ids": step.ids, "max_tokens": step.max_tokens, "pair": step.pair, "types": step.types}
    said["prompt"] = step.prompt
    listed = [f"{name} = {_value(value)}" for name, value in said.items() if value is not None]
    return f"{{ {', '.join(listed)} }}"


def _openai(section: OpenAISection) -> list[str]:
    """The prompts that a request may name."""
    if not section.prompts:
        return []
    listed = (f"{_value(name)} = {_value(text)}" for name, text in section.prompts.items())
    return ["[openai.prompts] # by `input_type` or `prompt_name` of /v1/embeddings", *listed, ""]


def _prompts(described: Described) -> list[str]:
    if not described.prompts:
        return []
    listed = ", ".join(f"{name} = {_value(text)}" for name, text in described.prompts.items() if text)
    return [f'# The folder\'s prompts: {listed}. To put one before every text: tokenizer = {{ …, prompt = "…" }}\n']


def _labels(spec: ClientOutput) -> list[str]:
    return [f"labels = {_value(list(spec.labels))}"] if spec.labels else []


def _model(spec: ModelInput) -> list[str]:
    lines = [f"pad = {spec.pad}"] if spec.pad else []
    if spec.role is not None:
        lines += [f"role = {_value(spec.role)} # derived, never part of a key", f"of = {_value(spec.of)}"]
    return lines


def _independence(found: ProbeVerdict) -> str:
    """What the probe found, as the setting that makes caching by the row right."""
    if found.difference == 0.0:
        return (
            f"# Probed in {found.comparisons} comparisons: batch-mates and padding change no bit of a row.\n"
            "[gates]\nmax_difference = 0.0\n"
        )
    return (
        f"# Probed: batch-mates change an answer by up to {found.difference:.2g}, so every row is run alone.\n"
        "# To batch all the same, say what you tolerate: [gates] max_difference = 1e-5, and remove `single`.\n"
        "[batching]\nsingle = true\n"
    )


def _value(value: Any) -> str:
    """A TOML value; JSON's strings, numbers and arrays are TOML's too."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return msgspec.json.encode(value).decode()
