"""Table 6 and the sensitivity to bandwidth as plain text."""

from collections.abc import Sequence

from .model import Throughput
from .search import Sensitivity
from .table6 import GBPS, PUBLISHED_EGRESS_GBPS, Row

_CELL = 24


def render(rows: Sequence[Row]) -> str:
    """Recomputed numbers, in brackets what is printed, and how far apart they are."""
    lines = [_line("", [row.published.name for row in rows])]
    lines.append(_line("t, N_prefill/N_decode", [_split(row.throughput) for row in rows]))
    names = dict.fromkeys(name for row in rows for name in row.numbers())
    lines.extend(_line(name, [_cell(row, name) for row in rows]) for name in names)
    lines.append(_line("ratio", [f"{row.ratio:.2f}x" for row in rows]))
    first = rows[0].throughput
    lines.append(
        f"\n{first.offloaded:.1%} of prompts offloaded, {first.long_tokens:,.0f} tokens on average; egress"
        f" {first.egress_bytes_per_s / GBPS:.1f} Gbps (printed: about {PUBLISHED_EGRESS_GBPS:.0f})"
    )
    return "\n".join(lines)


def render_bandwidths(rows: Sequence[Sensitivity]) -> str:
    """A line for each bandwidth: the best split, what it serves, and what the printed split serves there."""
    lines = [
        f"{'Gbps':>6} {'best t':>8} {'N_p/N_d':>8} {'req/s':>7} {'Gbps used':>10} {'printed split':>14} {'gain':>7}"
    ]
    lines.extend(
        f"{row.egress_bytes_per_s / GBPS:>6.0f} {row.best.split.threshold_tokens:>8,.0f}"
        f" {f'{row.best.split.prefill}/{row.best.split.decode}':>8} {row.best.requests_per_s:>7.3f}"
        f" {row.best.egress_bytes_per_s / GBPS:>10.2f} {row.fixed.requests_per_s:>14.3f} {row.gain:>+7.1%}"
        for row in rows
    )
    return "\n".join(lines)


def _split(found: Throughput) -> str:
    split = found.split
    threshold = f"{split.threshold_tokens / 1000:.1f}K, " if 0 < found.offloaded < 1 else ""
    return f"{threshold}{split.prefill}/{split.decode}"


def _cell(row: Row, name: str) -> str:
    if name not in row.numbers():
        return "-"
    found, printed = row.numbers()[name]
    return f"{found:.3f} ({printed:.2f}, {found / printed - 1.0:+.1%})"


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<22}" + "".join(f"{cell:>{_CELL}}" for cell in cells)
