"""In front of a V2 server that is not ours: what is found out about it, and what is never believed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreseen.errors import SetupError
from foreseen.proxy.backend.discovery import Upstream
from tests.foreign import Foreign, Reply, fronted, listening
from tests.questions import fingerprint, numbers

EACH: Callable[[dict[str, Any]], bool] = lambda told: told.get("rows") == "each"  # noqa: E731


async def test_models_are_found_and_rows_are_keyed_once_they_prove_independent(tmp_path: Path) -> None:
    """No manifest: signature, datatype and shapes are the server's; after the probe each row has its own entry."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        told = await front.until(EACH)
        assert told["digest_from"] == "unobservable"
        assert (await front.get("/v2/models/fp"))["inputs"] == [{"name": "x", "datatype": "INT64", "shape": [-1, 16]}]
        one, two, three = numbers(1), numbers(2), numbers(3)
        assert await front.infer(one, two) == (200, "foreseen;fwd=miss;stored", [fingerprint(one), fingerprint(two)])
        status, how, digests = await front.infer(two, three, one)
        assert (status, how) == (200, 'foreseen;fwd=partial;detail="2/3"')
        assert digests == [fingerprint(two), fingerprint(three), fingerprint(one)]
        assert [foreign.rows_like(row) for row in (one, two, three)] == [1, 1, 1]
        assert foreign.binary_tries == 1


async def test_a_server_that_hangs_up_on_binary_tensors_is_asked_in_json(tmp_path: Path) -> None:
    """No row is taken for one that ends the server: the connection that it closes is not used again."""
    foreign = Foreign()
    foreign.closing = True
    async with (
        listening(foreign.application()) as url,
        fronted(url, tmp_path / "data", upstream_probe=False) as front,
    ):
        for number in range(5):
            front.proxy.served["fp"].process._binary = None  # type: ignore[attr-defined] # as at the first question
            assert (await front.infer(numbers(number)))[2] == [fingerprint(numbers(number))]
            assert foreign.rows_like(numbers(number)) == 1
        assert not front.proxy.served["fp"].process.quarantine


async def test_what_is_not_probed_is_one_entry_per_request(tmp_path: Path) -> None:
    """Without the probe the same request is a hit, and another with one of its rows is not."""
    foreign = Foreign()
    async with (
        listening(foreign.application()) as url,
        fronted(url, tmp_path / "data", upstream_probe=False) as front,
    ):
        one, two = numbers(1), numbers(2)
        assert (await front.infer(one, two))[1] == "foreseen;fwd=miss;stored"
        assert (await front.infer(one, two))[1].startswith("foreseen;hit")
        assert (await front.infer(two, one)) == (200, "foreseen;fwd=miss;stored", [fingerprint(two), fingerprint(one)])
        assert (await front.infer())[0] == 400
        assert (await front.get("/v2/models/fp"))["parameters"]["rows"] == "together"


async def test_equal_questions_at_once_are_asked_once(tmp_path: Path) -> None:
    """Fifty askers of one cold row, one computation."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        await front.until(EACH)
        row = numbers(7)
        answers = await asyncio.gather(*(front.infer(row) for _ in range(50)))
        assert {(status, tuple(map(tuple, digests))) for status, _, digests in answers} == {
            (200, (tuple(fingerprint(row)),))
        }
        assert foreign.rows_like(row) == 1


async def test_parameters_that_may_change_the_answer_go_with_the_question(tmp_path: Path) -> None:
    """And are part of the key; a sequence, which a model may keep state by, is asked every time as it came."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        await front.until(EACH)
        row = numbers(3)
        for beam in (4, 5, 4):
            await front.infer(row, parameters={"beam": beam, "priority": 1, "timeout": 5_000_000})
        assert foreign.parameters[-2:] == [{"beam": 4}, {"beam": 5}]
        sequence = {"sequence_id": 7, "sequence_start": True, "sequence_end": False}
        for _ in range(2):
            assert (await front.infer(row, parameters=sequence))[1] == "foreseen;fwd=bypass;detail=sequence"
        assert foreign.parameters[-2:] == [sequence, sequence]


async def test_rows_that_depend_on_their_batch_stay_together(tmp_path: Path) -> None:
    """Each answer also holds the sum of the first row: the probe sees it, and each request keeps its own entry."""
    foreign = Foreign()
    foreign.answer = lambda rows: [[*fingerprint(row)[:3], sum(rows[0])] for row in rows]
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        process = front.proxy.served["fp"].process
        await front.until(lambda told: "batch-mates" in process.why)  # type: ignore[attr-defined]
        one, two = numbers(1), numbers(2)
        assert (await front.infer(one))[2][0][3] == sum(one)
        assert (await front.infer(two, one))[2][1][3] == sum(two)
        assert (await front.infer(one))[1].startswith("foreseen;hit")
        assert (await front.get("/v2/models/fp"))["parameters"]["rows"] == "together"


async def test_answers_that_are_all_alike_prove_nothing(tmp_path: Path) -> None:
    """A constant is the same alone and in a batch, and says nothing of other rows."""
    foreign = Foreign()
    foreign.answer = lambda rows: [[1, 2, 3, 4] for _ in rows]
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        process = front.proxy.served["fp"].process
        await front.until(lambda told: "shows nothing" in process.why)  # type: ignore[attr-defined]
        assert (await front.get("/v2/models/fp"))["parameters"]["rows"] == "together"


def _output(**more: Any) -> Callable[[Reply], Reply]:
    return lambda reply: {**reply, "outputs": [{**reply["outputs"][0], **more}]}


LIES: dict[str, Callable[[Reply], Reply]] = {
    "id": lambda reply: {**reply, "id": "somebody else's"},
    "model": lambda reply: {**reply, "model_name": "other"},
    "output name": _output(name="other"),
    "datatype": _output(datatype="INT32"),
    "shape": _output(shape=[4, 1]),
    "rank": _output(shape=[4]),
    "count": _output(shape=[2, 4], data=list(range(8))),
    "no outputs": lambda reply: {**reply, "outputs": []},
    "short data": _output(data=[1]),
    "not a reply": lambda reply: {"hello": "world"},
}


@pytest.mark.parametrize(
    ("what", "probed"), [(what, probed) for what in LIES for probed in (True, False) if probed or what != "count"]
)
async def test_an_answer_that_does_not_match_the_question_is_refused(what: str, probed: bool, tmp_path: Path) -> None:
    """502, nothing is stored, and the honest answer that comes later is the one that is kept."""
    foreign = Foreign()
    async with (
        listening(foreign.application()) as url,
        fronted(url, tmp_path / "data", upstream_probe=probed) as front,
    ):
        if probed:
            await front.until(EACH)
        row = numbers(11)
        foreign.lie = LIES[what]
        status, _, told = await front.infer(row)
        assert (status, told["code"]) == (502, "model_failed")
        foreign.lie = lambda reply: reply
        assert await front.infer(row) == (200, "foreseen;fwd=miss;stored", [fingerprint(row)])
        assert (await front.infer(row))[1].startswith("foreseen;hit")


@pytest.mark.parametrize("probed", [True, False])
async def test_a_detector_answers_as_many_rows_as_it_finds(probed: bool, tmp_path: Path) -> None:
    """None, one, many: each request is one entry, whatever the first dimension of its answer; rows stay together."""
    foreign = Foreign()
    foreign.answer = lambda rows: [fingerprint(rows[0])] * (sum(map(sum, rows)) % 4)
    async with (
        listening(foreign.application()) as url,
        fronted(url, tmp_path / "data", upstream_probe=probed) as front,
    ):
        if probed:
            process = front.proxy.served["fp"].process
            await front.until(lambda told: process.settled and process.why != "not probed")  # type: ignore[attr-defined]
        for how in ("fwd=miss", "hit"):
            for found in range(4):
                row = [found, *[4] * 15]
                status, said, digests = await front.infer(row)
                assert (status, digests, how in said) == (200, [fingerprint(row)] * found, True)
                status, _, digests = await front.infer(row, [0] * 16, row)
                assert (status, digests) == (200, [fingerprint(row)] * (2 * found % 4))
        assert (await front.get("/v2/models/fp"))["parameters"]["rows"] == "together"


async def test_an_id_that_is_not_echoed_is_no_lie(tmp_path: Path) -> None:
    """The protocol lets a server leave it out."""
    foreign = Foreign()
    foreign.lie = lambda reply: {name: value for name, value in reply.items() if name != "id"}
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        assert (await front.infer(numbers(1)))[2] == [fingerprint(numbers(1))]


@pytest.mark.parametrize("where", ["metadata", "reply", "digest"])
async def test_a_changed_version_is_a_new_space(where: str, tmp_path: Path) -> None:
    """Whether its metadata, its replies or a digest of its own tell: what the old one said is not answered any more."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:

        def become(version: str) -> None:
            if where == "metadata":
                foreign.metadata["versions"] = [version]
            elif where == "reply":
                foreign.version = version
            else:
                foreign.metadata["parameters"] = {"digest": version}

        become("1")
        row, other = numbers(5), numbers(6)
        told = await front.until(lambda told: EACH(told) and told["digest_from"] != "unobservable")
        assert told["digest_from"] == ("digest" if where == "digest" else "version")
        assert (await front.infer(row))[2] == [fingerprint(row)]
        assert (await front.infer(row))[1].startswith("foreseen;hit")
        foreign.answer = lambda rows: [[0, 0, 0, row[0]] for row in rows]
        become("2")
        if where == "reply":
            assert (await front.infer(other))[2] == [[0, 0, 0, other[0]]]  # it is this answer that tells
        else:
            await front.until(lambda now: now["digest"] != told["digest"])
        status, how, digests = await front.infer(row)
        assert (status, digests) == (200, [[0, 0, 0, row[0]]])
        assert "hit" not in how


async def test_a_changed_signature_is_another_model(tmp_path: Path) -> None:
    """Clients see the new shapes without a restart, and the old question is a 400."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data", upstream_probe=False) as front:
        assert (await front.infer(numbers(1)))[0] == 200
        foreign.metadata["inputs"] = [{"name": "x", "datatype": "INT64", "shape": [-1, 8]}]
        await front.until_described(lambda told: told["inputs"][0]["shape"] == [-1, 8])
        assert (await front.infer(numbers(1)))[0] == 400


def manifest(url: str, folder: Path, *, client: str = "") -> Path:
    """A folder with the operator's own word on `fp`."""
    (folder / "fp").mkdir(parents=True)
    text = f'''
        name = "fp"
        upstream = "{url}"
        digest = "of today"
        {client}
        [[model.inputs]]
        name = "x"
        datatype = "INT64"
        shape = ["rows", 16]
        [[model.outputs]]
        name = "digest"
        datatype = "INT64"
        shape = ["rows", 4]
    '''
    (folder / "fp" / "model.toml").write_text(text)
    return folder


CLIPPED = """
        [[client.inputs]]
        name = "x"
        datatype = "INT64"
        shape = ["rows", 16]
        clip = [0, 9]
        [[client.outputs]]
        name = "digest"
        datatype = "INT64"
        shape = ["rows", 4]
"""


@pytest.mark.parametrize("in_general", [True, False])
async def test_a_manifest_says_more(in_general: bool, tmp_path: Path) -> None:
    """Normalization before somebody else's model and a declared version, with `--upstream` or the manifest's own."""
    foreign = Foreign()
    async with listening(foreign.application()) as url:
        models = manifest(url, tmp_path / "models", client=CLIPPED)
        upstream = url if in_general else None
        async with fronted(upstream, tmp_path / "data", model=("fp",), models=models) as front:
            told = await front.until(lambda told: "digest_from" in told)
            assert (told["digest_from"], told["rows"]) == ("declared", "each")
            assert (await front.infer([50] * 16))[2] == [fingerprint([9] * 16)]
            assert (await front.infer([77] * 16))[1].startswith("foreseen;hit")


async def test_a_manifest_that_the_probe_disproves_is_not_cached_by_the_row(tmp_path: Path) -> None:
    """It says `each`, and an answer changes with its batch-mates: everything goes straight through from then on."""
    foreign = Foreign()
    foreign.answer = lambda rows: [[*fingerprint(row)[:3], sum(rows[0])] for row in rows]
    async with (
        listening(foreign.application()) as url,
        fronted(None, tmp_path / "data", model=("fp",), models=manifest(url, tmp_path / "models")) as front,
    ):
        await front.until(lambda told: told.get("cached") is False)
        for _ in range(2):
            assert (await front.infer(numbers(1)))[1] == "foreseen;fwd=bypass;detail=rows-not-independent"


async def test_a_manifest_that_contradicts_the_server_is_not_ready(tmp_path: Path) -> None:
    """Another datatype there: the model is not asked, and says why."""
    foreign = Foreign()
    foreign.metadata["inputs"][0]["datatype"] = "FP32"
    async with (
        listening(foreign.application()) as url,
        fronted(None, tmp_path / "data", model=("fp",), models=manifest(url, tmp_path / "models")) as front,
    ):
        status, _, told = await front.infer(numbers(1))
        while "FP32 at its upstream" not in told["error"]:
            status, _, told = await front.infer(numbers(1))
        assert (status, told["code"]) == (503, "model_unavailable")


async def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    """A model without a signature is left out with its reason; a server with none at all is one line."""
    foreign = Foreign()
    foreign.metadata["inputs"] = []
    async with listening(foreign.application()) as url:
        upstream = Upstream(url, (), lambda told: pytest.fail("nothing to serve"))
        await upstream._look()
        assert upstream.served == {}
        assert "name no inputs" in str(upstream.refused["fp"])
        await upstream.close()
    with pytest.raises(SetupError, match="is neither http://host:port nor grpc://host:port"):
        async with fronted("localhost:1", tmp_path / "data"):
            pass


async def test_a_model_that_appears_there_appears_here(tmp_path: Path) -> None:
    """The list is read again every few seconds."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        assert await front.get("/v2/models") == {"models": ["fp"]}
        foreign.listed.append("other")
        assert (await front.until(EACH, model="other"))["cached"] is True
        assert (await front.infer(numbers(1), model="other"))[2] == [fingerprint(numbers(1))]
