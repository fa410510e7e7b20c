"""Reads JSON Lines: a line is a V2 request of any number of rows, or one plain object `{input: value}`.

A tensor of n elements may also be n members NAME_0 … NAME_n-1. A line that cannot be read rejects its own rows only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from foreseen.errors import BadInput, BadRequest, SetupError
from foreseen.modelspec.manifest import ClientInput, Manifest, ModelOutput
from foreseen.modelspec.parameters import counting
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.strict_json import doubles_may_differ, load_json, load_whole
from foreseen.protocol.tensors import array_of_json
from foreseen.protocol.wire import parse_request
from foreseen.warm.plan import LINE_COLUMN, PARAMETERS_COLUMN, REJECT_COLUMN
from foreseen.warm.read.chunk import CHUNK_BYTES, Chunk
from foreseen.warm.read.columns import element_names, takes_nan
from foreseen.warm.read.content import JSON_MARKS

Field = ClientInput | ModelOutput


class Signature:
    """What lines are read for: members by name with the input or output that each holds, and which a line must have."""

    def __init__(self, manifest: Manifest, wanted: Mapping[str, str], elsewhere: Sequence[str]) -> None:
        """`wanted` is member → input, output, or "" for what is only kept; `elsewhere` are columns that no line has."""
        self.manifest = manifest
        known: dict[str, Field] = {s.name: s for s in manifest.model.outputs}
        known |= {s.name: s for s in manifest.seen.inputs}
        self.wanted = tuple(name for name in wanted if name not in elsewhere)
        self.fields = {name: known[to] for name, to in wanted.items() if to in known}
        masks = {spec.trim for spec in manifest.seen.inputs if spec.trim}
        optional = masks | {spec.name for spec in manifest.seen.inputs if spec.ignore}
        given = {to for name, to in wanted.items() if name in elsewhere}
        self.required: dict[str, list[str]] = {}
        for name, to in wanted.items():
            if to in known and to not in optional and to not in given:
                self.required.setdefault(to, []).append(name)

    def member_of(self, name: str) -> str:
        """The member that holds an input: another one where columns are mapped."""
        return self.required.get(name, [name])[0]


class Line:
    """One line: its values by member, of one or more rows; or why there are none."""

    def __init__(self, at: int, text: bytes, signature: Signature) -> None:
        self.at = at
        self.reject: str | None = None
        self.lacks: str | None = None
        self.members: tuple[str, ...] = ()
        self.parameters = b""
        self.columns: dict[str, list[Any]] = {}
        self.rows = 1
        for mark in JSON_MARKS:
            text = text.removeprefix(mark)
        try:
            document = load_json(text)
            if not isinstance(document, dict):
                raise BadRequest("is neither a V2 request nor an object of inputs")
            if isinstance(document.get("inputs"), list) and all(isinstance(i, dict) for i in document["inputs"]):
                self._request(text, signature)
            else:
                self._object(document, text, signature)
        except BadRequest as error:
            self.reject, self.columns, self.rows = str(error), {}, 1

    def _object(self, document: dict[str, Any], text: bytes, signature: Signature) -> None:
        self.members = tuple(document)
        self.columns = {name: [document[name]] for name in signature.wanted if name in document}
        whole = {name for name in self.columns if name in signature.fields and _is_integer(signature.fields[name])}
        if whole and doubles_may_differ(text):  # integers are decided from their digits
            digits = load_whole(text)
            self.columns |= {name: [digits[name]] for name in whole}
        for to, names in signature.required.items():
            if any(name in document for name in names):
                continue
            self.columns[names[0]] = [self._elements(document, to, names, signature)]

    def _elements(self, document: dict[str, Any], to: str, names: Sequence[str], signature: Signature) -> list[Any]:
        """A tensor whose elements are members of their own. Raises BadInput where the line does not hold it at all."""
        for name in names:
            elements = element_names(signature.fields[name], name)
            if elements and elements[0] in document:
                missing = next((one for one in elements if one not in document), None)
                if missing is not None:
                    raise BadInput(f"has no member {missing!r}")
                return [document[one] for one in elements]
        self.lacks = to
        raise BadInput(f"has no member {to!r}; its members are {', '.join(list(document)[:20]) or 'none'}")

    def _request(self, text: bytes, signature: Signature) -> None:
        manifest = signature.manifest
        request = parse_request(text, None, whole=manifest.upstream is not None)
        specs = {spec.name: spec for spec in manifest.seen.inputs}
        for tensor in request.inputs:
            spec = specs.get(tensor.name)
            if spec is None:
                raise BadInput(f"inputs.{tensor.name}: there is no such input; the model takes {', '.join(specs)}")
            if tensor.datatype != spec.datatype and not spec.cast:
                raise BadInput(f"inputs.{tensor.name}.datatype: is {tensor.datatype}, must be {spec.datatype}")
            if tensor.array.ndim != len(spec.shape):
                raise BadInput(f"inputs.{tensor.name}.shape: has {tensor.array.ndim} dimensions, not {len(spec.shape)}")
            self.columns[signature.member_of(tensor.name)] = list(tensor.array.tolist())
        sizes = {len(column) for column in self.columns.values()}
        if len(sizes) != 1:
            raise BadInput("inputs: the first dimension (rows) differs between inputs")
        self.rows = sizes.pop()
        self.parameters = counting(request.parameters, manifest, request.members)


def _is_integer(field: Field) -> bool:
    return DATATYPES[field.datatype].kind == "i"


def json_chunks(handle: Any, url: str, signature: Signature, start: int, sizes: Iterator[int]) -> Iterator[Chunk]:
    """The lines from place `start` on. Raises SetupError where no line of the first chunk has one of the inputs."""
    lines = islice(iter(handle.readline, b""), start, None)
    while block := list(_within(lines, next(sizes))):
        read = [Line(at, line, signature) for at, line in enumerate(block, start) if line.strip()]
        if read:
            if start == 0:
                _check_members(read, url)
            yield Chunk(start, start + len(block), _table(read, signature))
        start += len(block)


def _within(lines: Iterator[bytes], rows: int) -> Iterator[bytes]:
    size = 0
    for line in islice(lines, rows):
        yield line
        size += len(line)
        if size > CHUNK_BYTES:
            return


def _check_members(lines: Sequence[Line], url: str) -> None:
    """A member that no line has is a misspelt name and stops the run, instead of rejecting every row."""
    objects = [line for line in lines if line.members]
    lacking = {line.lacks for line in objects}
    if len(lacking) == 1 and None not in lacking and not any(line.reject is None for line in lines):
        have = dict.fromkeys(name for line in objects for name in line.members)
        name = lacking.pop()
        shown = ", ".join(list(have)[:20])
        raise SetupError(f"{url}: no column for {name!r}; the file has {shown}; give --map COLUMN={name}")


def _table(lines: Sequence[Line], signature: Signature) -> pa.RecordBatch:
    """Lines as typed columns. A value that is not what its input takes rejects its line; the others keep theirs."""
    needed = {
        names[0] for names in signature.required.values() if not any(n in li.columns for n in names for li in lines)
    }
    names = [n for n in signature.wanted if n in needed or any(n in line.columns for line in lines)]
    names += [n for n in dict.fromkeys(n for line in lines for n in line.columns) if n not in names]
    rows: dict[str, list[Any]] = {name: [] for name in names}
    rejects: list[str | None] = []
    for line in lines:
        values = {name: line.columns.get(name, [None] * line.rows) for name in names}
        for i in range(line.rows):
            reject = line.reject
            for name in names:
                try:
                    value = _typed(values[name][i], signature.fields.get(name), name) if reject is None else None
                    rows[name].append(value)
                except BadInput as error:
                    rows[name].append(None)
                    reject = str(error)
            rejects.append(reject)
    arrays = [_column(rows[name], signature.fields.get(name)) for name in names]
    repeated = [(line.at, line.parameters) for line in lines for _ in range(line.rows)]
    arrays += [
        pa.array(rejects, pa.string()),
        pa.array([at for at, _ in repeated], pa.int64()),
        pa.array([parameters for _, parameters in repeated], pa.binary()),
    ]
    return pa.RecordBatch.from_arrays(arrays, [*names, REJECT_COLUMN, LINE_COLUMN, PARAMETERS_COLUMN])


def _typed(value: Any, spec: Field | None, name: str) -> Any:
    """A JSON value as its input's column holds it, checked as a request's is."""
    if value is None or spec is None:
        return value
    datatype, dims = DATATYPES[spec.datatype], spec.shape[1:]
    if datatype.kind == "s" and not dims:
        if not isinstance(value, str | bytes):
            raise BadInput(f"{name}: takes strings only")
        return value.encode() if isinstance(value, str) else value
    if all(isinstance(dim, int) for dim in dims):
        shape = tuple(int(dim) for dim in dims) or (1,)
        made = array_of_json(value if dims else [value], datatype, shape, name, missing=takes_nan(spec))
        return made.ravel().tolist()
    return value


def _column(values: list[Any], spec: Field | None) -> pa.Array:
    if spec is None:
        return _any_column(values)
    datatype, dims = DATATYPES[spec.datatype], spec.shape[1:]
    element = pa.binary() if datatype.kind == "s" else pa.from_numpy_dtype(_plain(datatype.dtype))
    if all(isinstance(dim, int) for dim in dims):
        if not dims:
            single = [value[0] if isinstance(value, list) else value for value in values]
            return pa.array(single, element)
        return pa.array(values, pa.list_(element))
    return _any_column(values)


def _any_column(values: list[Any]) -> pa.Array:
    """Values of a member that no input takes, or of open size; as JSON text where they are of several types."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else orjson.dumps(value).decode() for value in values], pa.string())


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind in "biuf" else np.dtype(np.float32)
