"""Options: what may be said of a policy in a file, and what is said back when it is wrong."""

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest

from homing.router.core.errors import ConfigError
from homing.router.core.policies import POLICIES, make_policy
from homing.router.core.policies.options import Bounds, Count, Share, check_options, options_of

OPERATING = Path(__file__).parents[4] / "docs" / "operating.md"


class Sample:
    def __init__(
        self,
        *,
        share: Share = 0.5,
        count: Count = 3,
        sure: bool = False,
        site: str = "",
        kind: Literal["a", "b"] = "a",
        limit: float | None = None,
        range_: Annotated[int, Bounds(-1, 1)] = 0,
        tool: Path | None = None,
    ) -> None:
        pass


def wrong(**options):
    with pytest.raises(ConfigError) as caught:
        check_options("sample", Sample, options, "policy")
    return str(caught.value)


def test_what_a_file_can_spell_is_an_option():
    assert list(options_of(Sample)) == ["share", "count", "sure", "site", "kind", "limit", "range_"]
    assert {name: option.default for name, option in options_of(Sample).items()}["share"] == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share": 0, "count": 1, "sure": True, "site": "x", "kind": "b", "limit": None, "range_": -1},
        {"share": 1.0, "limit": 2, "range_": 1},
    ],
)
def test_what_fits_is_passed_on(options):
    assert check_options("sample", Sample, options, "policy") == options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"share": 1.1}, "share: expected a number at least 0 and at most 1, got 1.1"),
        ({"share": "x"}, "share: expected a number at least 0 and at most 1, got 'x'"),
        ({"share": True}, "share: expected a number at least 0 and at most 1, got True"),
        ({"share": float("nan")}, "share: expected a number at least 0 and at most 1, got nan"),
        ({"count": 0}, "count: expected a whole number at least 1, got 0"),
        ({"count": 1.0}, "count: expected a whole number at least 1, got 1.0"),
        ({"count": None}, "count: expected a whole number at least 1, got None"),
        ({"sure": 1}, "sure: expected true or false, got 1"),
        ({"site": 1}, "site: expected a text, got 1"),
        ({"kind": "c"}, "kind: expected one of a, b, got 'c'"),
        ({"limit": "x"}, "limit: expected a number or null, got 'x'"),
        ({"range_": 2}, "range_: expected a whole number at least -1 and at most 1, got 2"),
        (
            {"tool": "x"},
            "tool: sample has no such option; known are count, kind, limit, range_, share, site, sure",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_its_path(options, says):
    assert wrong(**options) == f"policy.options.{says}"


def test_a_policy_without_options_says_so():
    with pytest.raises(ConfigError, match=r"^fleet\.options\.x: random has no such option; it has none$"):
        make_policy("random", {"x": 1}, where="fleet")


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_default_follows_its_own_rule(name):
    options = {key: option.default for key, option in options_of(POLICIES[name]).items()}
    assert make_policy(name, options).name == name


def test_the_table_of_options_is_that_of_the_code():
    """In `docs/operating.md`, with the defaults."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| .* \| (.*) \|$", OPERATING.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: re.findall(r"`(\w+)` ([^,]+)", cells) for name, cells in rows if name in POLICIES}
    assert told.keys() == POLICIES.keys()
    for name in POLICIES:
        known = options_of(POLICIES[name]).items()
        assert told[name] == [(key, str(option.default).lower() or '""') for key, option in known], name
