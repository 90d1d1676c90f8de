"""The documents are true: their code runs, their configs parse, and what they name exists.

`path/to/file.py::Name.method` in backticks names a definition; it is looked up in that file.
"""

import ast
import doctest
import json
import re
import traceback
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, get_args

import msgspec
import pytest
import typer
import yaml

from homing.router.cli.main import app
from homing.router.core.policies import POLICIES, make_policy
from homing.router.core.scheduler import Scheduler
from homing.router.core.topology import Topology
from homing.router.core.types import RejectReason, Site
from homing.router.service.backends.gauges import BackendGauges
from homing.router.service.config import Config, parse_config
from homing.router.service.door.hits import Hits
from homing.router.service.metrics import Metrics
from homing.router.service.sections import (
    BackendSection,
    ConnectorSection,
    KvEventsSection,
    LinkSection,
    ModelSection,
    PolicySection,
    PriorSection,
    RouterSection,
    SiteSection,
    WorkerSection,
)
from homing.router.service.wire import STATUS
from homing.sim import scenario
from homing.sim.experiments.document import parse_yaml
from homing.sim.experiments.load import prepare, scenario_names
from homing.sim.workload.section import Workload
from homing.sim.workload.spec import WorkloadSpec

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *sorted(ROOT.glob("docs/*.md"))]
OPERATING = ROOT / "docs/operating.md"
PERFORMANCE = ROOT / "docs/performance.md"
SIMULATOR = ROOT / "docs/simulator.md"
SCENARIO_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "The scenario file": scenario.Scenario,
    "models[]": scenario.ModelSection,
    "sites[]": scenario.SiteSection,
    "links[]": scenario.LinkSection,
    "workers[]": scenario.WorkerSection,
    "workers[].profile": scenario.LinearSection,
    "workload": Workload,
    "router": scenario.RouterSection,
    "router.kv_events": scenario.KvEventsSection,
    "slo": scenario.SloSection,
    "faults[]": scenario.FaultSection,
}
WORKLOADS = {kind.__struct_config__.tag: kind for kind in get_args(WorkloadSpec)}
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "router": RouterSection,
    "sites[]": SiteSection,
    "links[]": LinkSection,
    "models[]": ModelSection,
    "policy": PolicySection,
    "workers[]": WorkerSection,
    "workers[].prior": PriorSection,
    "backends[]": BackendSection,
    "backends[].kv_events": KvEventsSection,
    "backends[].connector": ConnectorSection,
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(?P<title>.+)$", re.MULTILINE)
_SUFFIXES = (".py", ".md", ".proto", ".toml", ".ini")


class Block(NamedTuple):
    """A fenced block and the line of its page where its code begins."""

    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["code"], text.count("\n", 0, found.start("code")) + 1)
        for found in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    """What stands in backticks, outside of fenced blocks."""
    return _SPAN.findall(prose(page))


def code_lines(page: Path) -> list[str]:
    """What a reader might type or copy: spans, and the lines of fenced and indented blocks without their prompt."""
    fenced = [line for block in blocks(page) for line in block.code.splitlines()]
    indented = re.findall(r"^ {4}.+$", prose(page), re.MULTILINE)
    return [line.strip().lstrip("#$ ") for line in [*spans(page), *fenced, *indented]]


def run_block(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    """Execute a block, or, when it shows a dialogue, hold it to the answers that it shows."""
    if ">>>" not in block.code:
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        exec(code, namespace)
        return
    test = doctest.DocTestParser().get_doctest(block.code, namespace, page.name, str(page), block.line - 1)
    complaints: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=complaints.append, clear_globs=False)
    namespace.update(test.globs)
    assert not complaints, "".join(complaints)


@every_page
def test_python_blocks_run(page, monkeypatch):
    """Each page's blocks share one namespace, in order, as a reader at the repository's root would type them."""
    monkeypatch.chdir(ROOT)
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        if block.language == "python":
            run_block(block, page, namespace)


def test_a_wrong_answer_in_a_page_is_found():
    """The runner itself can fail: in both kinds of block, with the page's own line."""
    page = ROOT / "docs/none.md"
    with pytest.raises(AssertionError, match=r"line 7"):
        run_block(Block("python", ">>> 1 + 1\n3\n", 7), page, {})
    with pytest.raises(ZeroDivisionError) as raised:
        run_block(Block("python", "1 / 0\n", 7), page, {})
    assert traceback.extract_tb(raised.tb)[-1].lineno == 7


@every_page
def test_yaml_blocks_that_are_configs_parse(page):
    known = {field.name for field in msgspec.structs.fields(Config)}
    for block in blocks(page):
        data = yaml.safe_load(block.code) if block.language == "yaml" else None
        where = f"{page.name}:{block.line}"
        if isinstance(data, dict) and "workload" in data:
            prepare(data, ROOT / where)
        elif isinstance(data, dict) and known & data.keys():
            parse_config(block.code, where=where)


@every_page
def test_relative_links_lead_somewhere(page):
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        assert found.exists(), f"{page.name}: {target} does not exist"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target} has no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = _HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@every_page
def test_named_paths_exist(page):
    tops = {path.name for path in ROOT.iterdir()}
    for span in spans(page):
        path, _, name = span.partition("::")
        words = re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", path)
        if words is None or not (path.split("/")[0] in tops or path.endswith(_SUFFIXES)):
            continue
        found = list(ROOT.glob(path))
        assert found, f"{page.name}: {path} does not exist"
        assert not name or all(name in definitions(one) for one in found), f"{page.name}: {path} has no {name}"


@cache
def definitions(path: Path) -> frozenset[str]:
    """Qualified names of a module's classes, functions, methods and assigned names."""
    names: set[str] = set()

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(prefix + name)
                    walk(child, f"{prefix}{name}.")
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                    names.add(prefix + name)

    walk(ast.parse(path.read_text(encoding="utf-8")), "")
    return frozenset(names)


@every_page
def test_named_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in code_lines(page):
        named = re.match(r"make ([a-z][a-z-]*)", line)
        assert named is None or named[1] in targets, f"{page.name}: the Makefile has no target {named[1]}"


@every_page
def test_named_commands_and_their_options_exist(page):
    for line in code_lines(page):
        named = re.match(r"homing((?: +[a-z][a-z-]*)+)", line)
        if named is None:
            continue
        command, name = typer.main.get_command(app), "homing"
        for word in named[1].split():
            commands = getattr(command, "commands", None)
            if commands is None:
                break
            assert word in commands, f"{page.name}: there is no command `{name} {word}`"
            command, name = commands[word], f"{name} {word}"
        known = {opt for option in command.params for opt in [*option.opts, *option.secondary_opts]}
        given = re.findall(r"(?<!\S)-{1,2}[a-z][a-z-]*", line)
        assert set(given) <= known, f"{page.name}: `{name}` has no {set(given) - known}"


def exported_metrics() -> dict[str, str]:
    """Name (as Prometheus sees it) and kind of every metric."""
    scheduler = Scheduler(
        models=[], topology=Topology(), policy=make_policy("homing"), random=Random(0), site=Site("home")
    )
    metrics = Metrics(scheduler)
    metrics.registry.register(BackendGauges([], Hits()))
    families = metrics.registry.collect()
    return {f.name + "_total" * (f.type == "counter"): f.type for f in families}


@every_page
def test_named_metrics_exist(page):
    exported = exported_metrics()
    series = {name + end for name, kind in exported.items() for end in ("_bucket", "_count") if kind == "histogram"}
    for line in code_lines(page):
        for name in re.findall(r"\bhoming_[a-z_]+\b(?!\*)", line):
            assert name.endswith("_") or name in exported.keys() | series, f"{page.name}: no metric {name}"


def test_every_metric_is_documented():
    rows = {row[0]: row[1] for row in tables(OPERATING)["Metrics"]}
    assert {name.strip("`"): kind for name, kind in rows.items()} == exported_metrics()


def tables(page: Path) -> dict[str, list[list[str]]]:
    """The rows of all tables under each heading, without the head; a heading's backticks are left out."""
    found: dict[str, list[list[str]]] = {}
    heading, above = "", ""
    for line in prose(page).splitlines():
        title = _HEADING.match(line)
        if title is not None:
            heading = title["title"].replace("`", "")
        is_row = line.startswith("|") and above.startswith("|") and not set(line) <= set("|-: ")
        if is_row:
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.setdefault(heading, []).append([cell.strip() for cell in cells])
        above = line
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_every_config_key_is_documented_with_its_default(section):
    check_keys(tables(OPERATING)[section], SECTIONS[section])


@pytest.mark.parametrize("section", SCENARIO_SECTIONS)
def test_every_scenario_key_is_documented_with_its_default(section):
    check_keys(tables(SIMULATOR)[section], SCENARIO_SECTIONS[section])


def check_keys(table: list[list[str]], section: type[msgspec.Struct]) -> None:
    """Hold the rows of a table to the fields of a section: their names, and their defaults as YAML."""
    rows = {row[0].strip("`"): row[1].strip("`") for row in table}
    fields = {field.name: field for field in msgspec.structs.fields(section)}
    assert rows.keys() == fields.keys()
    for key, field in fields.items():
        if field.required:
            assert rows[key] == "required", key
            continue
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        assert parse_yaml(rows[key], where=key) == msgspec.json.decode(msgspec.json.encode(default)), key


@pytest.mark.parametrize("kind", WORKLOADS)
def test_every_workload_is_documented_with_its_own_keys(kind):
    rows = {row[0].strip("`"): re.findall(r"`([a-z_]+)`", row[1]) for row in tables(SIMULATOR)["Workloads"]}
    own = [name for name in WORKLOADS[kind].__struct_fields__ if name not in Workload.__struct_fields__]
    assert rows[kind] == own
    assert rows.keys() == WORKLOADS.keys()


def test_every_scenario_that_ships_is_documented():
    assert [row[0].strip("`") for row in tables(SIMULATOR)["Scenarios that ship"]] == scenario_names()


def test_the_sections_of_a_config_are_documented():
    assert {name.partition("[")[0] for name in SECTIONS} == {f.name for f in msgspec.structs.fields(Config)}


def test_refusals_are_documented_with_their_status():
    rows = {row[0].strip("`"): row[1].strip("`") for row in tables(OPERATING)["Refusals"]}
    core = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("router/core/*.py"))
    given = [reason for reason in RejectReason if f"RejectReason.{reason.name}" in core]
    assert rows == {str(reason): STATUS[reason].name for reason in given}


def test_every_policy_is_documented():
    named = {span for span in spans(OPERATING) if span in POLICIES}
    assert named == set(POLICIES)


@pytest.mark.parametrize("results", sorted(ROOT.glob("benchmarks/results/*.json")), ids=lambda path: path.name)
def test_committed_results_are_shown_as_measured(results):
    """A figure in the page is the figure in the file, to the digits shown."""
    shown = {row[0]: row[1:] for row in tables(PERFORMANCE)[f"benchmarks/results/{results.name}"]}
    measured = json.loads(results.read_text(encoding="utf-8"))["rows"]
    assert shown.keys() == {row["case"] for row in measured}
    for row in measured:
        figures = [value for value in row.values() if isinstance(value, int | float)]
        for cell in shown[row["case"]]:
            digits = len(cell.partition(".")[2])
            assert any(f"{value:.{digits}f}" == cell for value in figures), f"{row['case']}: {cell} was not measured"
