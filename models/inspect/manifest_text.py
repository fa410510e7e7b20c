"""The findings of `models add` → model.toml with its comments.

A test follows every instruction in the comments literally.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from foreseen.models.inspect.probe import Found, ProbeVerdict
from foreseen.models.inspect.text_inputs import IDS
from foreseen.modelspec.manifest import ClientInput, ClientOutput, Manifest, ModelInput, ModelOutput
from foreseen.modelspec.manifest.hints import Samples


def text_of(found: Found, graph: Path, files: Sequence[str] = ()) -> str:
    """The text of model.toml for a graph in the same folder, as are `files`."""
    manifest = found.manifest
    sha256 = _sha256(graph)
    proved = ", ".join(f"{_quoted(name)} = {_quoted(_sha256(graph.parent / name))}" for name in files)
    beside = f'folder = "."\nfiles = {{ {proved} }}\n' if files else ""
    head = (
        "# Written by `foreseen models add`; docs/model-toml.md explains every field.\n"
        f'name = {_quoted(manifest.name)}\ntitle = ""\n'
        "# Candidates in order of preference. For CPUs also int8-rowwise, matmul-nbits, matmul-nbits-4, int8-dynamic;\n"
        "# for GPUs fp16, bf16, int8-rowwise-s8, matmul-nbits.\n"
        f'precisions = ["fp32"]\n{_rows(found)}\n'
        f'[source]\nbuilder = "onnx"\nurl = {_quoted(graph.name)} # beside this file\nsha256 = "{sha256}"\n{beside}'
    )
    parts = [head, _clients(manifest)]
    parts += [_table("model.inputs", spec) for spec in manifest.model.inputs]
    parts += [_table("model.outputs", output) for output in manifest.model.outputs]
    return "\n".join(part for part in [*parts, _samples(manifest.samples), _independence(found)] if part)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(found: Found) -> str:
    """Whether answers are cached, and by what key. Before any table, as TOML requires."""
    manifest, verdict = found.manifest, found.verdict
    lines = []
    if not manifest.cacheable:
        why = f"the graph draws at random ({verdict.random_op})" if verdict.random_op else "a row's answer differs"
        lines += [f"# Probed: {why} from run to run, so nothing is cached.", "cacheable = false"]
    else:
        lines += ["# cacheable = false # for models that sample, keep state or are random"]
    if manifest.rows == "together":
        lines += [f"# {_why_together(found)}", 'rows = "together"']
    return "\n".join(lines) + "\n"


def _why_together(found: Found) -> str:
    if found.why:
        return f"Every request goes to the graph as it was sent, and is cached as a whole: {found.why}."
    if found.verdict.mates == "real":
        return "Probed: rows change each other's answers, so a request is run and cached as a whole."
    return "Every request goes to the graph as it was sent."


def _clients(manifest: Manifest) -> str:
    client = manifest.client
    if client is None:
        return "# [[client.inputs]] may list what clients send instead (text, pictures, rounding), all inputs of it.\n"
    hint = ""
    if any(spec.name == IDS for spec in client.inputs):
        hint = (
            "# The mask says where a row ends; what is behind it is cut off. To take text in the place of ids, add\n"
            "# the file again with its tokenizer: foreseen models add FILE --tokenizer tokenizer.json\n"
        )
    tables = [_table("client.inputs", spec) for spec in client.inputs]
    tables += [_table("client.outputs", spec) for spec in client.outputs]
    return hint + "\n".join(tables)


def _table(kind: str, spec: ModelInput | ModelOutput | ClientInput | ClientOutput) -> str:
    shape = ", ".join(_quoted(dim) if isinstance(dim, str) else str(dim) for dim in spec.shape)
    lines = [f"[[{kind}]]", f"name = {_quoted(spec.name)}", f'datatype = "{spec.datatype}"', f"shape = [{shape}]"]
    if isinstance(spec, ModelInput) and spec.role is not None and spec.of is not None:
        lines += [f'role = "{spec.role}" # derived, never part of a key', f"of = {_quoted(spec.of)}"]
    if isinstance(spec, ClientInput) and spec.trim is not None:
        lines += [f"trim = {_quoted(spec.trim)}"]
    if isinstance(spec, ClientInput) and spec.tokenizer is not None:
        step = spec.tokenizer
        lines += [f"tokenizer = {{ ids = {_quoted(step.ids)}, max_tokens = {step.max_tokens} }}"]
    return "\n".join(lines) + "\n"


def _samples(samples: Samples) -> str:
    """Empty where random rows need no hints."""
    if samples == Samples():
        return ""
    lines = [
        "# What the graph takes, for the rows that are made up to measure it; found by trying. Edit freely.",
        "[samples]",
    ]
    for field in ("sizes", "values", "texts"):
        listed: Mapping[str, Sequence[object]] = getattr(samples, field)
        if listed:
            pairs = ", ".join(
                f"{_quoted(name)} = {msgspec.json.encode(items).decode()}" for name, items in listed.items()
            )
            lines.append(f"{field} = {{ {pairs} }}")
    return "\n".join(lines) + "\n"


def _independence(found: Found) -> str:
    """What the probe found, as the setting that makes caching by the row right."""
    manifest, verdict = found.manifest, found.verdict
    if manifest.batching.single and verdict.mates == verdict.padding == "none":
        return f"# {found.why[:1].upper()}{found.why[1:]}.\n[batching]\nsingle = true\n"
    if manifest.batching.single:
        return _alone(verdict)
    if manifest.rows == "together":
        return ""
    return (
        f"# Probed in {verdict.comparisons} comparisons: batch-mates and padding change no bit of a row.\n"
        "[gates]\nmax_difference = 0.0\n"
    )


def _alone(verdict: ProbeVerdict) -> str:
    cause = "padding" if verdict.mates == "none" else "batch-mates"
    if verdict.padding == "real":
        size = "its shape" if verdict.difference == float("inf") else f"it by up to {verdict.difference:.2g}"
        return f"# Probed: padding changes an answer ({size}), so every row is run alone.\n[batching]\nsingle = true\n"
    return (
        f"# Probed: {cause} change an answer by up to {verdict.difference:.2g}, so every row is run alone.\n"
        "# To batch all the same, say what you tolerate: [gates] max_difference = 1e-5, and remove `single`.\n"
        "[batching]\nsingle = true\n"
    )


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return msgspec.json.encode(text).decode()
