"""A profile out of measured points: the least squares of relative errors, under coefficients that make sense.

`prefill = a + b*(n-c) + q*(n^2-c^2)` and `decode = a + b*batch + c*context`, all coefficients at least 0: a pass does
not get quicker by more work. Errors are relative, so that the short passes count as much as the long ones.

Rule 1: coefficients at 0 are tried out in all combinations (three coefficients have seven), so the result is the
optimum of the constrained problem, and the same for points in any order.
Rule 2: a fit tells its error at each point; whoever uses it decides whether it is good enough.

Needs numpy, which the extra `sim` installs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from homing.router.core.errors import ConfigError

from .files import LinearDecodeSection, LinearPrefillSection, ProfileFile, write_file
from .points import DecodePoint, Measured, PrefillPoint, read_points
from .profile import Profile

COEFFICIENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPoint:
    """A measured point and what the fit says of it."""

    point: Measured
    fitted_s: float

    @property
    def error(self) -> float:
        """Fitted over measured seconds, less one."""
        return self.fitted_s / self.point.seconds - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """A fitted profile and its error at each of the points that it was fitted to."""

    file: ProfileFile
    profile: Profile
    points: tuple[FittedPoint, ...]

    @property
    def mean_error(self) -> float:
        """The mean of the errors without their signs."""
        return sum(abs(point.error) for point in self.points) / len(self.points)

    @property
    def max_error(self) -> float:
        """The largest error without its sign."""
        return max(abs(point.error) for point in self.points)

    def render(self) -> str:
        """The coefficients, and a line for each point."""
        sections = {"prefill": self.file.prefill, "decode": self.file.decode}
        lines = [f"{name}: {_coefficients(section)}" for name, section in sections.items() if section is not None]
        lines.append(f"{'point':<44} {'measured ms':>12} {'fitted ms':>12} {'error':>8}")
        lines.extend(
            f"{_label(each.point):<44} {1e3 * each.point.seconds:>12.3f} {1e3 * each.fitted_s:>12.3f}"
            f" {each.error:>+8.1%}"
            for each in self.points
        )
        lines.append(f"error: mean {self.mean_error:.1%}, largest {self.max_error:.1%}")
        return "\n".join(lines)


def fit(
    path: Path,
    out: Path | None = None,
    *,
    name: str = "",
    model: str = "",
    hardware: str = "",
    gpus: int = 1,
) -> FitReport:
    """Fit a profile to the points of a CSV file (see the module `points`) and, with `out`, write it there as JSON.

    The name is that of the file unless given. ConfigError for a bad file, and for points that do not tell the
    coefficients apart.
    """
    measured = read_points(path)
    prefills = [point for point in measured if isinstance(point, PrefillPoint)]
    decodes = [point for point in measured if isinstance(point, DecodePoint)]
    a_s, b_s, q_s = _fit_prefill(prefills, path)
    file = ProfileFile(
        name=name or path.stem,
        model=model,
        gpus=gpus,
        hardware=hardware,
        source=f"fitted to {len(measured)} points of {path.name}",
        prefill=LinearPrefillSection(a_s=a_s, b_s=b_s, q_s=q_s),
        decode=_fit_decode(decodes, path) if decodes else None,
    )
    profile = file.profile(str(path))
    if out is not None:
        write_file(file, out)
    fitted = tuple(FittedPoint(point=point, fitted_s=_fitted_s(profile, point)) for point in measured)
    return FitReport(file=file, profile=profile, points=fitted)


def _fit_prefill(points: Sequence[PrefillPoint], path: Path) -> list[float]:
    rows = [
        (1.0, p.end_tokens - p.cached_tokens, (p.end_tokens - p.cached_tokens) * (p.end_tokens + p.cached_tokens))
        for p in points
    ]
    coefficients = _least_squares(rows, [p.seconds for p in points], f"{path}: prefill")
    if coefficients[1] == 0.0:
        raise ConfigError(f"{path}: prefill: more tokens took no longer; time prompts of several lengths")
    return coefficients


def _fit_decode(points: Sequence[DecodePoint], path: Path) -> LinearDecodeSection:
    rows = [(1.0, p.batch, p.context_tokens) for p in points]
    a_s, b_s, c_s = _least_squares(rows, [p.seconds for p in points], f"{path}: decode")
    if a_s == 0.0:
        raise ConfigError(f"{path}: decode: an empty pass would take no time; time small batches with short contexts")
    return LinearDecodeSection(a_s=a_s, b_s=b_s, c_s=c_s)


def _least_squares(rows: Sequence[tuple[float, ...]], seconds: Sequence[float], where: str) -> list[float]:
    """Coefficients of at least 0 with the least sum of squared relative errors."""
    import numpy as np  # noqa: PLC0415 - only a fit needs it

    if len(rows) < COEFFICIENTS:
        raise ConfigError(f"{where}: {COEFFICIENTS} coefficients need as many points, got {len(rows)}")
    matrix = np.array(rows, dtype=float) / np.array(seconds)[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    if np.linalg.matrix_rank(matrix / np.where(scale > 0, scale, 1.0)) < COEFFICIENTS:
        raise ConfigError(f"{where}: the points do not tell {COEFFICIENTS} coefficients apart; vary both columns")
    best: tuple[float, list[float]] | None = None
    for count in range(1, COEFFICIENTS + 1):
        for used in combinations(range(COEFFICIENTS), count):
            part = matrix[:, used] / scale[list(used)]
            solution = np.linalg.lstsq(part, np.ones(len(rows)), rcond=None)[0]
            loss = float(np.sum((part @ solution - 1.0) ** 2))
            if min(solution) > 0 and (best is None or loss < best[0]):
                found = dict(zip(used, solution / scale[list(used)], strict=True))
                best = loss, [float(found.get(i, 0.0)) for i in range(COEFFICIENTS)]
    assert best is not None, "one coefficient alone is positive where all seconds are"
    return best[1]


def _fitted_s(profile: Profile, point: Measured) -> float:
    if isinstance(point, PrefillPoint):
        return profile.prefill_s(point.cached_tokens, point.end_tokens)
    return profile.decode_s(point.batch, point.context_tokens)


def _label(point: Measured) -> str:
    if isinstance(point, PrefillPoint):
        return f"prefill of [{point.cached_tokens}, {point.end_tokens})"
    return f"decode of {point.batch} with {point.context_tokens} tokens"


def _coefficients(section: object) -> str:
    return ", ".join(
        f"{name} {getattr(section, name):.4g}" for name in ("a_s", "b_s", "q_s", "c_s") if hasattr(section, name)
    )
