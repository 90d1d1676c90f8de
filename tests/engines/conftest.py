"""Real engines are slow to start: these tests run when an environment for them is named, and are skipped otherwise."""

from pathlib import Path

import pytest

from .environment import venv

HERE = Path(__file__).resolve().parent
SUITE_S = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder's tests without engines; give them time with engines."""
    missing = venv() is None
    skip = pytest.mark.skip(reason="real engines: run make test-engines (it names them in HOMING_ENGINES_VENV)")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip if missing else pytest.mark.timeout(SUITE_S))
