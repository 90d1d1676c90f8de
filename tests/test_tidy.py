"""Style that a linter cannot see, as tests: sizes, purity, dead modules, docstrings, words."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("router", "sim", "workers", "protos")
LINES_MAX = 400
FUNCTION_LINES_MAX = 70
ENTRY_POINTS = {
    "homing.router.cli.main",
    "homing.sim.kernel",
    "homing.sim.rng",
    "homing.workers.echo.__main__",
    "homing.workers.vllm.connector",
    "homing.loadtest.run",
    "homing.loadtest.locustfile",
    "homing.loadtest.idle_streams",
}
"""Started from outside, or a library of its own that other code is built on."""
PURE = ("router/core", "workers/engine")
IMPURE_MODULES = {"asyncio", "datetime", "logging", "os", "random", "secrets", "socket", "threading", "time", "uuid"}
BELIEFS = re.compile(r"homing\.router\.core\.(fleet|ledger|planner|price|rates|tolls|topology|world)\b")
"""What the router believes of the world; the simulator's truth must not be made of it (I6)."""
NOTES = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
PRIVATE_WORDS = re.compile(
    r"(?<![\w.])/(work|root|home|Users)/|\bhelper-\w|\bissue #?\d|\bshared/(design|style|facts)"
    r"|\bpypi\.org\b|\bpythonhosted\b|\bproxy\.golang\b"
)
"""Paths of somebody's machine, notes to oneself and hosts of registries: nothing that a reader could follow."""
TEXTS = {".py", ".md", ".yaml", ".toml", ".proto", ".txt", ".json", ".sh"}
GENERATED = ("_pb2.py", "_pb2_grpc.py", "_pb2.pyi")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "docs", "examples")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_generated(path: Path) -> bool:
    return path.name.endswith(GENERATED)


def modules(*folders: str) -> list[Path]:
    """Hand-written Python files."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if not is_generated(path)]


def texts() -> list[Path]:
    """Every file that people wrote, but this one, which names the words it looks for."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    found = [path for path in (*ROOT.iterdir(), *inside) if path.is_file() and path != Path(__file__).resolve()]
    return sorted(path for path in found if path.suffix in TEXTS or path.name == "Makefile")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def dotted(path: Path) -> str:
    """The name under which a file of the packages is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("homing", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imported(path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports, at any depth; of `from a import b` both a and a.b."""
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_modules_are_short():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules(*PACKAGES)}
    too_long = {name: lines for name, lines in lengths.items() if lines > LINES_MAX}
    assert not too_long, "split these: they do more than one thing"


def test_functions_are_short():
    too_long = {
        f"{name_of(path)}::{node.name}": lines
        for path in modules(*PACKAGES, "benchmarks")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert not too_long


@pytest.mark.parametrize("folder", PURE)
def test_the_cores_have_no_clock_no_dice_and_no_loop(folder):
    """Randomness comes in as a `Random`: its type may be named, one may not be made."""
    for path in modules(folder):
        names = set(imported(path)) - {"random", "random.Random"}
        assert not {name.split(".")[0] for name in names} & IMPURE_MODULES, name_of(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                assert all(alias.name != "random" for alias in node.names), f"{name_of(path)}: the global generator"
            made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Random"
            assert not made, f"{name_of(path)} makes a generator instead of being handed one"


def test_truth_and_belief_do_not_read_each_other():
    """I6: otherwise every prediction would come true."""
    for path in modules("sim"):
        believed = [name for name in imported(path) if BELIEFS.match(name)]
        assert not believed, f"{name_of(path)} reads what the router believes"
    for path in modules("router/core", "router/service", "workers/engine"):
        true = [name for name in imported(path) if name.startswith(("homing.sim", "homing.workers.emulation"))]
        assert not true, f"{name_of(path)} reads the truth of a simulation"


def test_no_module_is_dead():
    """What only a test imports is dead too."""
    live = {name for path in modules(*PACKAGES, "benchmarks") for name in imported(path)} | ENTRY_POINTS
    here = {dotted(path): path for path in modules(*PACKAGES)}
    dead = [name_of(path) for name, path in here.items() if name not in live and path.name != "__init__.py"]
    assert not dead


def test_every_module_begins_with_a_docstring():
    bare = [name_of(path) for path in modules(*PACKAGES, "benchmarks") if not ast.get_docstring(tree(path))]
    assert not bare


def test_public_names_of_the_cores_have_docstrings():
    bare = [
        f"{name_of(path)}::{name}"
        for path in modules(*PURE)
        for name, node in public(tree(path))
        if not ast.get_docstring(node)
    ]
    assert not bare


def public(
    node: ast.Module | ast.ClassDef, prefix: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Classes, functions and methods whose whole path is public."""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("pattern", [NOTES, PRIVATE_WORDS], ids=["notes", "private words"])
def test_texts_speak_to_their_readers(pattern):
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_tabs():
    """Only a Makefile needs them."""
    assert [name_of(p) for p in texts() if p.name != "Makefile" and "\t" in p.read_text(encoding="utf-8")] == []
