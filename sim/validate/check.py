"""One thing that was validated: what was expected and by whom, what was measured, and whether that is close enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

WIDTH = 116


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A result in words and numbers; `note` is what a reader should know beside it."""

    name: str
    source: str
    """Where the expectation is from: a theorem, or paper and table."""
    expected: str
    measured: str
    tolerance: str
    passed: bool
    note: str = ""


def close(
    name: str, *, source: str, expected: float, measured: float, tolerance: float, unit: str = "", note: str = ""
) -> Check:
    """A number that is to lie within a share of what was expected."""
    off = measured / expected - 1.0
    return Check(
        name=name,
        source=source,
        expected=f"{expected:.4g}{unit}",
        measured=f"{measured:.4g}{unit} ({off:+.1%})",
        tolerance=f"{tolerance:.1%}",
        passed=abs(off) <= tolerance,
        note=note,
    )


def holds(name: str, *, source: str, expected: str, measured: str, passed: bool, note: str = "") -> Check:
    """A statement that is true or not."""
    return Check(name=name, source=source, expected=expected, measured=measured, tolerance="", passed=passed, note=note)


def render(checks: Sequence[Check]) -> str:
    """Plain text, a paragraph per check and the count of those that failed at the end."""
    paragraphs = ["\n".join(_lines(check)) for check in checks]
    failed = [check.name for check in checks if not check.passed]
    last = f"{len(checks)} checks, {len(failed)} failed" + (f": {', '.join(failed)}" if failed else "")
    return "\n\n".join([*paragraphs, last]) + "\n"


def _lines(check: Check) -> list[str]:
    within = f" within {check.tolerance}" if check.tolerance else ""
    lines = [f"{'ok  ' if check.passed else 'FAIL'} {check.name}"]
    lines += [_field("expected", f"{check.expected}{within} ({check.source})"), _field("measured", check.measured)]
    return lines + ([_field("note", check.note)] if check.note else [])


def _field(name: str, text: str) -> str:
    return fill(f"     {name:<9}{text}", WIDTH, subsequent_indent=" " * 14)
