"""A lone row's request is what the general way renders; its reply is read as that reads it, or not at all."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreseen.errors import (
    BadInput,
    BadRequest,
    DeadlineExceeded,
    ForeseenError,
    InputRejected,
    ModelFailed,
    ModelUnavailable,
    Overloaded,
    RowsRefused,
)
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.members import NO_MEMBERS
from foreseen.protocol.tensors import raw_of
from foreseen.protocol.wire import parse_request, parse_response
from foreseen.protocol.wire_render import OutputTensor, render_response
from foreseen.proxy.backend.model import ModelProcess
from foreseen.proxy.backend.row_templates import MAX_TEMPLATES, RowTemplate, RowTemplates
from foreseen.types import RequestOptions, Row
from tests.proxy.predict.test_template_answers import FLOATS, NUMBERS, TEXT, TEXTS_OUT, model, tensor

ONLINE = RequestOptions(1e9)
OWN = {"priority": 1}


def text_row(*ids: int) -> Row:
    return Row((np.array(ids, np.int64),))


def replied(manifest: Manifest, row: Row, request_id: str, seconds: float = 7.1e-05, **more: Any) -> tuple[bytes, int]:
    """What our model process replies."""
    outputs = []
    for spec in manifest.model.outputs:
        datatype, shape = DATATYPES[spec.datatype], (1, *(d for d in spec.shape[1:] if isinstance(d, int)))
        array = (np.arange(np.prod(shape)) + row.tensors[0].sum()).astype(datatype.dtype).reshape(shape)
        outputs.append(OutputTensor(spec.name, spec.datatype, shape, raw_of(array, datatype), binary=True))
    facts = {"digest": "d1", "seconds": seconds, **more}
    body, length = render_response(manifest.name, manifest.version, request_id, outputs, facts)
    assert length is not None
    return body, length


def learned(manifest: Manifest, row: Row, process: ModelProcess) -> RowTemplate:
    """A template that has seen a reply."""
    template = RowTemplates(manifest.model).of(row, ONLINE, OWN)
    assert template is not None
    body, length = replied(manifest, row, "ab-0")
    response = parse_response(body, length, ours=True)
    (made,) = process._predictions(response, [row], NO_MEMBERS, "ab-0", 0.5)
    template.learn(body, length, b"ab-0", response, made)
    return template


def test_a_request_is_what_the_general_way_renders() -> None:
    """Derived inputs are made, the id and the timeout are those of the request, and a model process reads it."""
    templates = RowTemplates(TEXT.model)
    for ids in ((1, 2, 3), (4, 5, 6), (7,)):
        template = templates.of(text_row(*ids), ONLINE, OWN)
        assert template is not None
        body, length = template.request(text_row(*ids), b"ab-1f", 1234)
        asked = parse_request(body, length)
        assert (asked.id, asked.binary) == ("ab-1f", True)
        assert asked.parameters == {"timeout": 1234, "priority": 1, "binary_data_output": True}
        arrays = {one.name: one.array.tolist() for one in asked.inputs}
        assert arrays == {"ids": [list(ids)], "mask": [[1] * len(ids)]}
    assert templates.of(text_row(9, 9, 9), ONLINE, OWN) is templates.of(text_row(1, 2, 3), ONLINE, OWN)


def test_lane_caller_and_weight_are_parts_of_a_template() -> None:
    """A request of one caller is never rendered by the template of another's."""
    templates, row = RowTemplates(TEXT.model), text_row(1)
    options = [ONLINE, RequestOptions(1e9, "background"), RequestOptions(1e9, caller="a"),
               RequestOptions(1e9, caller="b", weight=3)]  # fmt: skip
    own = [OWN, {"priority": 2}, {**OWN, "caller": "a", "weight": 1}, {**OWN, "caller": "b", "weight": 3}]
    for one, parameters in zip(options, own, strict=True):
        template = templates.of(row, one, parameters)
        assert template is not None
        body, length = template.request(row, b"1", 1)
        assert parse_request(body, length).parameters == {"timeout": 1, **parameters, "binary_data_output": True}


def test_rows_that_have_no_template() -> None:
    """Of texts, of some optional inputs only, and of a caller whose name is what a template is rendered with."""
    texts = model([tensor("t", "BYTES")], [tensor("y", "FP32")])
    assert RowTemplates(texts.model).of(Row((np.full((), b"a", object),)), ONLINE, OWN) is None
    assert RowTemplates(TEXT.model).of(Row((np.zeros(2, np.int64),), (0,)), ONLINE, OWN) is None
    odd = "the id of a request"
    assert RowTemplates(TEXT.model).of(text_row(1), RequestOptions(1e9, caller=odd), {**OWN, "caller": odd}) is None


def test_templates_are_bounded() -> None:
    """One more than there may be begins anew."""
    templates = RowTemplates(TEXT.model)
    for length in range(MAX_TEMPLATES + 1):
        templates.of(Row((np.zeros(length, np.int64),)), ONLINE, OWN)
    assert len(templates._known) == 1


@pytest.mark.parametrize(("manifest", "row"), [(NUMBERS, Row((np.array([1, 2, 3], np.int64),))),
                                               (TEXT, text_row(3, 1, 2))])  # fmt: skip
async def test_a_changed_reply_is_read_as_the_general_way_reads_it_or_not_at_all(manifest: Manifest, row: Row) -> None:
    """Each byte of a reply replaced, inserted or left out, in JSON and data; other ids, seconds, digests."""
    process, dice = ModelProcess(manifest, "unix:/nowhere"), random.Random(3)
    template = learned(manifest, row, process)
    form = template.reply
    assert form is not None
    whole, length = replied(manifest, row, "ab-7", 0.0123)
    read = 0
    for step in range(4000):
        body, json_length = bytearray(whole), length
        if step % 4 == 0:
            seconds = dice.choice([0.0, 1e-05, 123.456, 1, 3e15, 1e300])
            other, json_length = replied(manifest, row, "ab-7", seconds)
            body = bytearray(other)
        else:
            at = dice.randrange(len(body))
            new = bytes(dice.choices(b'0123456789.eE+-"{}[],: abdt\x00\xff\x7f', k=dice.randint(0, 2)))
            body[at : at + dice.randint(0, 2)] = new
            json_length += dice.choice([0, 0, len(body) - len(whole)])
        found = form.read(bytes(body), json_length, b"ab-7")
        if found is None:
            continue
        read += 1
        try:
            response = parse_response(bytes(body), json_length, ours=True)
            (general,) = process._predictions(response, [row], NO_MEMBERS, "ab-7", 0.5)
        except (ForeseenError, BadRequest, ValueError) as error:
            pytest.fail(f"{bytes(body)!r} is refused: {error}")
        assert (found.outputs, found.data, found.digest, found.seconds) == (
            general.outputs, general.data, general.digest, general.seconds,
        ), bytes(body)  # fmt: skip
    assert read > 800
    assert form.read(whole, length, b"ab-8") is None
    await process.close()


async def test_nan_and_infinity_are_never_read_by_a_template() -> None:
    """The general way refuses them."""
    row = Row((np.array([1, 2, 3], np.int64),))
    process = ModelProcess(NUMBERS, "unix:/nowhere")
    form = learned(NUMBERS, row, process).reply
    assert form is not None
    body, length = replied(NUMBERS, row, "ab-7")
    for number in ("nan", "inf", "-inf"):
        for at in range(4):
            changed = body[: length + 4 * at] + struct.pack("<f", float(number)) + body[length + 4 * at + 4 :]
            assert form.read(changed, length, b"ab-7") is None
            with pytest.raises(ModelFailed):
                process._predictions(parse_response(changed, length), [row], NO_MEMBERS, "ab-7", 0.5)
    await process.close()


async def test_a_reply_with_bools_or_texts_has_no_form() -> None:
    """Their bytes are checked one by one."""
    for manifest, row in (
        (FLOATS, Row((np.array([1, 2], np.float32), np.array(3, np.uint8)))),
        (TEXTS_OUT, Row((np.zeros((2, 2), np.int16),))),
    ):
        process = ModelProcess(manifest, "unix:/nowhere")
        template = RowTemplates(manifest.model).of(row, ONLINE, OWN)
        assert template is not None
        outputs = []
        for spec in manifest.model.outputs:
            datatype, shape = DATATYPES[spec.datatype], (1, *(d for d in spec.shape[1:] if isinstance(d, int)))
            array: Any = np.ones(shape, datatype.dtype) if datatype.size else np.full(shape, b"t", object)
            outputs.append(OutputTensor(spec.name, spec.datatype, shape, raw_of(array, datatype), binary=True))
        body, length = render_response("m", manifest.version, "1", outputs, {"digest": "d", "seconds": 0.5})
        assert length is not None
        response = parse_response(body, length)
        (made,) = process._predictions(response, [row], NO_MEMBERS, "1", 0.5)
        template.learn(body, length, b"1", response, made)
        assert template.reply is None
        await process.close()


class ScriptedProcess:
    """A model process at a unix socket that says what a test wants it to say."""

    def __init__(self) -> None:
        self.say: bytes | None = None
        """The head and body of the next replies; None answers, b"" closes the connection."""
        self.asked: list[dict[str, Any]] = []
        self.silent = False
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def at(self, path: Path) -> AsyncIterator[str]:
        """Its address, while it serves."""
        server = await asyncio.start_unix_server(self._answer, str(path))
        try:
            yield f"unix:{path}"
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            for _ in range(3):
                await asyncio.sleep(0)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            except asyncio.IncompleteReadError:
                break
            lines = (line.partition(": ") for line in head.split("\r\n"))
            sizes = {name: int(value) for name, _, value in lines if value.isdigit()}
            if "content-length" not in sizes:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            body = await reader.readexactly(sizes["content-length"])
            asked = parse_request(body, sizes["inference-header-content-length"])
            self.asked.append({"id": asked.id, **asked.parameters})
            if self.silent:
                await asyncio.sleep(30)
            if self.say == b"":
                break
            if self.say is not None:
                writer.write(self.say)
                continue
            row = Row((asked.inputs[0].array[0],))
            reply, length = replied(NUMBERS, row, asked.id or "")
            writer.write(
                b"HTTP/1.1 200 OK\r\nServer: foreseen\r\nContent-Type: application/octet-stream\r\n"
                b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\nDate: x\r\n\r\n"
                % (length, len(reply))
                + reply
            )
        writer.close()


def refusal(status: int, text: str, more: str = "") -> bytes:
    body = f'{{"error": "{text}", "code": "x"}}'
    return f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def ask(process: ModelProcess, value: int, seconds: float = 10.0, **more: Any) -> Any:
    deadline = asyncio.get_running_loop().time() + seconds
    return process.predict([Row((np.array([value, 1, 1], np.int64),))], b"", RequestOptions(deadline, **more))


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[ModelProcess]:
    process = ModelProcess(NUMBERS, address)
    try:
        yield process
    finally:
        await process.close()


async def test_a_row_is_asked_by_its_template_and_answered_by_its_reply(tmp_path: Path) -> None:
    """The first on the general way, the second by its template, the third is also read by it; answers are alike."""
    scripted, reads = ScriptedProcess(), []
    async with scripted.at(tmp_path / "s") as address, opened(address) as process:
        for value in (1, 2, 3, 3):
            (prediction,) = await ask(process, value)
            reads.append(prediction)
        assert [np.frombuffer(one.data[0], np.float32)[0] for one in reads] == [3, 4, 5, 5]
        assert {one.outputs for one in reads} == {reads[0].outputs}
        assert len({one["id"] for one in scripted.asked}) == 4
        (template,) = process._templates._known.values()  # type: ignore[union-attr]
        assert template is not None
        assert template.reply is not None


@pytest.mark.parametrize(
    ("say", "error"),
    [(refusal(400, "no"), InputRejected | BadInput), (refusal(500, "no"), ModelFailed),
     (refusal(503, "full", "Retry-After: 7\r\n"), Overloaded), (refusal(504, "late"), DeadlineExceeded),
     (b"", ModelUnavailable), (b"nonsense\r\n\r\n", ModelFailed)],
)  # fmt: skip
async def test_errors_are_those_of_the_general_way(tmp_path: Path, say: bytes, error: Any) -> None:
    """Refusals, a connection that closes, bytes that are no reply: the same error by the template and without it."""
    scripted = ScriptedProcess()
    async with scripted.at(tmp_path / "s") as address:
        told: list[Any] = []
        for templates in (True, False):
            process = ModelProcess(NUMBERS, address, quarantine_seconds=0.0)
            if not templates:
                process._templates = None
            scripted.say = None
            await ask(process, 1)
            await ask(process, 2)
            scripted.say, before = say, len(scripted.asked)
            with pytest.raises((ForeseenError, RowsRefused)) as raised:
                await ask(process, 3, 0.3)
            one = raised.value.first if isinstance(raised.value, RowsRefused) else raised.value
            assert isinstance(one, error)
            told.append((type(raised.value), type(one), str(one), len(scripted.asked) - before))
            await process.close()
        assert told[0] == told[1]


async def test_a_silent_process_ends_the_request_at_its_deadline(tmp_path: Path) -> None:
    """And the connection is closed, so that a late reply is nobody's."""
    scripted = ScriptedProcess()
    async with scripted.at(tmp_path / "s") as address, opened(address) as process:
        await ask(process, 1)
        scripted.silent = True
        with pytest.raises(DeadlineExceeded):
            await ask(process, 2, 0.05)
        assert process._line is not None
        assert not process._line.has_idle
        with pytest.raises(DeadlineExceeded):
            await ask(process, 2, -1.0)


async def test_what_is_not_ordinary_has_no_template(tmp_path: Path) -> None:
    """A trace, parameters, a suspected row, a row that is tried alone, several rows, no idle connection."""
    scripted = ScriptedProcess()
    async with scripted.at(tmp_path / "s") as address, opened(address) as process:
        row = Row((np.array([1, 1, 1], np.int64),))

        def template(rows: Sequence[Row] = (row,), parameters: bytes = b"", **more: Any) -> bool:
            return process._template(rows, parameters, RequestOptions(1e9, **more)) is not None

        assert not template()
        await ask(process, 1)
        assert template()
        assert not template((row, row))
        assert not template(parameters=b'{"a":1}')
        assert not template(traceparent="00-" + "1" * 32 + "-" + "1" * 16 + "-00")
        process.quarantine._trying = True
        assert not template()
        process.quarantine._trying = False
        process.quarantine.crashed(row, b"")
        assert not template()
        process.quarantine.clear()
        assert template()
