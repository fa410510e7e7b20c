"""Somebody's ONNX file → a folder with the file and a commented model.toml, its row independence probed.

The signature is read from the graph. What a graph cannot say (which input is a mask, how text becomes ids, what the
labels are called) is guessed from usual names or left as a comment to fill in.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import msgspec
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from foreseen.errors import SetupError
from foreseen.models.build.child import prove
from foreseen.models.build.publish import workshop
from foreseen.models.graphs import onnx_file
from foreseen.models.measure import check, heads
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.samples import samples
from foreseen.models.progress import BuildProgress
from foreseen.modelspec.manifest import BATCH, Batching, Dim, Manifest, ModelInput, ModelOutput, ModelSignature, load
from foreseen.protocol.datatypes import BY_DTYPE

PROBED_ROWS = 32
ROLES = {"attention_mask": "mask", "token_type_ids": "zeros"}
"""What `transformers` exports call the inputs that derive from the ids."""


def add(file: Path, name: str | None, folder: Path, data: Path, say: BuildProgress, *, replace: bool = False) -> Path:
    """Write `folder/<name>/model.toml` and a copy of the file beside it. Raises SetupError naming what does not fit."""
    name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", file.stem).strip("-").lower()
    place = folder / name
    if place.exists() and not replace:
        raise SetupError(f"{place}: is there already; give --replace, or another --name")
    model = onnx_file.read(file)
    signature, fixed = signature_of(model, file.name)
    with workshop(data, say) as shop:
        made = shop / name
        made.mkdir()
        graph = made / "model.onnx"
        onnx_file.copy(file, graph)
        draft = Manifest(name=name, model=signature, batching=Batching(single=fixed))
        with say.step("load it in a child process"):
            prove(graph, draft, made)
        with say.step("probe whether rows depend on their batch-mates"):
            found = None if fixed else _probe(graph, draft, made)
        text = text_of(draft, place.resolve() / graph.name, hashlib.sha256(graph.read_bytes()).hexdigest(), found)
        (made / "model.toml").write_text(text, "utf-8")
        load(made / "model.toml")  # what was written must be readable
        folder.mkdir(parents=True, exist_ok=True)
        if place.exists():
            _replace(place, made)
        else:
            shutil.move(made, place)
    return place / "model.toml"


def _replace(place: Path, made: Path) -> None:
    """Put another file in a model's place. What somebody wrote into model.toml stays where the signature is the same;
    else the old one is kept as model.toml.old."""
    toml, new = place / "model.toml", made / "model.toml"
    if toml.is_file():
        old, fresh = load(toml), load(new)
        if old.source is not None and old.source.sha256 and fresh.source is not None and _same_signature(old, fresh):
            new.write_text(toml.read_text("utf-8").replace(old.source.sha256, fresh.source.sha256 or ""), "utf-8")
        else:
            shutil.copyfile(toml, toml.with_suffix(".toml.old"))
    for path in (made / "model.onnx", new):
        beside = place / f".{path.name}.new"
        shutil.move(path, beside)  # it may come from another file system, where a rename is a copy
        beside.replace(place / path.name)


def _same_signature(old: Manifest, new: Manifest) -> bool:
    """Whether a graph of the new signature serves the old manifest."""
    inputs, outputs = (
        [{(spec.name, spec.datatype, len(spec.shape)) for spec in specs} for specs in pair]
        for pair in ((old.model.inputs, new.model.inputs), (old.model.outputs, new.model.outputs))
    )
    return inputs[0] == inputs[1] and outputs[0] <= outputs[1]


def signature_of(model: ModelProto, file: str) -> tuple[ModelSignature, bool]:
    """The signature, and whether the graph takes one row at a time only (its first dimension is a fixed 1)."""
    fixed = False
    specs: list[ModelInput] = []
    for value in onnx_file.inputs(model):
        datatype, shape, one = _tensor(value, file)
        fixed = fixed or one
        specs.append(ModelInput(value.name, datatype, shape))
    outputs = []
    for value in model.graph.output:
        datatype, shape, _ = _tensor(value, file)
        outputs.append(ModelOutput(value.name, datatype, shape))
    return ModelSignature(tuple(_with_roles(specs)), tuple(outputs)), fixed


def _with_roles(specs: list[ModelInput]) -> list[ModelInput]:
    ids = next((spec for spec in specs if spec.name == "input_ids"), None)
    if ids is None:
        return specs
    return [
        msgspec.structs.replace(spec, role=ROLES[spec.name], of=ids.name, shape=ids.shape)
        if spec.name in ROLES
        else spec
        for spec in specs
    ]


def _tensor(value: ValueInfoProto, file: str) -> tuple[str, tuple[Dim, ...], bool]:
    """Datatype and shape in the manifest's words; True where the first dimension is a fixed 1."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape") or not kind.shape.dim:
        raise SetupError(f"{file}: {value.name!r} is not a tensor with a batch axis")
    first, *others = kind.shape.dim
    if first.dim_value > 1:
        raise SetupError(f"{file}: {value.name!r} takes batches of exactly {first.dim_value}; export it with any size")
    dims: list[Dim] = [BATCH]
    for axis, dim in enumerate(others, 1):
        dims.append(dim.dim_value or re.sub(r"\W+", "_", dim.dim_param) or f"{value.name}_{axis}")
    return _datatype(kind.elem_type, value.name, file), tuple(dims), first.dim_value == 1


def _datatype(element: int, name: str, file: str) -> str:
    if element == TensorProto.STRING:
        return "BYTES"
    found = BY_DTYPE.get(helper.tensor_dtype_to_np_dtype(element))
    if found is None:
        raise SetupError(f"{file}: {name!r} has a datatype that the protocol does not know")
    return found.name


def _probe(graph: Path, draft: Manifest, files: Path) -> check.Invariance:
    rows = samples(draft, files, PROBED_ROWS)
    session = GraphSession(graph, draft.model, "fp32")
    alone = session.alone(rows)
    return check.invariance(session, rows, alone, heads.head_of(draft, check.vectors(alone, draft.model)))


def text_of(draft: Manifest, path: Path, sha256: str, found: check.Invariance | None) -> str:
    """model.toml with its comments."""
    head = (
        f"# Written by `foreseen models add`; every field is explained in foreseen/modelspec/manifest.py.\n"
        f"name = {_quoted(draft.name)}\n"
        f'title = ""\n'
        f"# Candidates in order of preference; there are also fp16, int8-rowwise, int8-dynamic and matmul-nbits.\n"
        f'precisions = ["fp32"]\n'
        f"# cacheable = false # for models that sample, keep state or are random\n\n"
        f'[source]\nbuilder = "onnx"\nurl = {_quoted(str(path))}\nsha256 = "{sha256}"\n'
        f'options = {{ file = "model.onnx" }}\n'
    )
    parts = [head, _client_hint(draft)]
    parts += [_table("model.inputs", spec) for spec in draft.model.inputs]
    parts += [_table("model.outputs", output) for output in draft.model.outputs]
    return "\n".join([*parts, _independence(found)])


def _client_hint(draft: Manifest) -> str:
    if not any(spec.name == "input_ids" for spec in draft.model.inputs):
        return (
            "# [[client.inputs]] and [[client.outputs]] may say what clients send instead (text, pictures, rounding).\n"
        )
    return (
        "# To take text instead of ids, put the model's tokenizer.json beside the graph (source.wheels) and say:\n"
        '# [[client.inputs]]\n# name = "text"\n# datatype = "BYTES"\n# shape = ["rows"]\n'
        '# tokenizer = { ids = "input_ids", max_tokens = 256 }\n'
    )


def _table(kind: str, spec: ModelInput | ModelOutput) -> str:
    shape = ", ".join(_quoted(dim) if isinstance(dim, str) else str(dim) for dim in spec.shape)
    lines = [f"[[{kind}]]", f"name = {_quoted(spec.name)}", f'datatype = "{spec.datatype}"', f"shape = [{shape}]"]
    if isinstance(spec, ModelInput) and spec.role is not None and spec.of is not None:
        lines += [f'role = "{spec.role}" # derived, never part of a key', f"of = {_quoted(spec.of)}"]
    return "\n".join(lines) + "\n"


def _independence(found: check.Invariance | None) -> str:
    """What the probe found, as the setting that makes caching by the row right."""
    if found is None:
        return "# The graph takes one row at a time.\n[batching]\nsingle = true\n"
    if found.max_difference == 0.0:
        return (
            f"# Probed in {found.comparisons} comparisons: batch-mates and padding change no bit of a row.\n"
            "[gates]\nmax_difference = 0.0\n"
        )
    return (
        f"# Probed: batch-mates change an answer by up to {found.max_difference:.2g}, so every row is run alone.\n"
        "# To batch all the same, say what you tolerate: [gates] max_difference = 1e-5, and remove `single`.\n"
        "[batching]\nsingle = true\n"
    )


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return msgspec.json.encode(text).decode()
