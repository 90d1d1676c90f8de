"""The few lines that are needed out of a page of metrics, in Prometheus' text format 0.0.4.

A real engine's page has hundreds of lines, of which a handful matters once a second for every engine: only lines that
begin with a name that is asked for are looked at.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'[ \t,]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: a metric, its labels and its value."""

    name: str
    labels: Mapping[str, str]
    value: float


def samples(page: str, names: Collection[str]) -> list[Sample]:
    """The finite samples of some metrics, in the page's order; lines that cannot be read are left out."""
    starts = tuple(names)
    lines = (line for line in page.split("\n") if line.startswith(starts))
    return [sample for line in lines if (sample := _sample(line)) is not None and sample.name in names]


def by_rank(found: Iterable[Sample], label: str) -> list[Mapping[str, float]]:
    """The values by name of each rank, in the order of the number in `label`; without the label it is one rank.

    Where several lines tell of one rank (one for each tensor-parallel part of it, say), the highest counts.
    """
    ranks: dict[int, dict[str, float]] = {}
    for sample in found:
        number = sample.labels.get(label, "0")
        values = ranks.setdefault(int(number) if number.isdecimal() else 0, {})
        values[sample.name] = max(sample.value, values.get(sample.name, sample.value))
    return [ranks[rank] for rank in sorted(ranks)]


def _sample(line: str) -> Sample | None:
    """A line's sample, in time linear in its length; the braces end at the last one, as label values may have more."""
    head, brace, tail = line.rpartition("}")
    name, open_brace, text = head.partition("{")
    if not brace:
        name, _, tail = line.replace("\t", " ").partition(" ")
    labels = _labels(text)
    words = tail.split()
    if bool(brace) != bool(open_brace) or labels is None or len(words) not in {1, 2}:
        return None
    try:
        value = float(words[0])
    except ValueError:
        return None
    name = name.rstrip(" \t")
    return Sample(name, labels, value) if _NAME.fullmatch(name) and isfinite(value) else None


def _labels(text: str) -> dict[str, str] | None:
    found, at = {}, 0
    while match := _LABEL.match(text, at):
        found[match[1]] = _unescaped(match[2])
        at = match.end()
    return None if text[at:].strip(" \t,") else found


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), text) if "\\" in text else text
