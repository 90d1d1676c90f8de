"""Fitting: what is exact is found exactly, noise is told, and bad rows are named."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.errors import ConfigError
from homing.sim.truth import fit, linear_profile, load_profile
from homing.sim.truth.files import profile_path, read_file
from homing.sim.truth.fit import _least_squares

RANGES = [(0, 256), (0, 1024), (512, 1024), (0, 4096), (4096, 8192), (0, 16_384), (31_744, 32_768)]
PASSES = [(1, 1000), (8, 8000), (8, 80_000), (32, 100_000), (64, 64_000)]


def written(path, truth, random=None, noise=0.0):
    def said(seconds):
        return seconds * (random.uniform(1 - noise, 1 + noise) if random else 1.0)

    lines = ["cached_tokens,end_tokens,seconds,batch,context_tokens", "# of a test", ""]
    lines += [f"{c},{n},{said(truth.prefill_s(c, n))!r},," for c, n in RANGES]
    lines += [f",,{said(truth.decode_s(b, c))!r},{b},{c}" for b, c in PASSES]
    path.write_text("\n".join(lines))
    return path


def test_a_linear_truth_is_found_and_read_again(tmp_path):
    truth = linear_profile(a_s=0.006, b_s=4e-5, q_s=2.4e-10, decode_a_s=0.01, decode_b_s=2e-5, decode_c_s=1.3e-8)
    out = tmp_path / "mine.json"
    report = fit(written(tmp_path / "points.csv", truth), out, model="llama-3.1-8b", hardware="1x test", gpus=1)
    assert report.max_error < 1e-6
    assert len(report.points) == len(RANGES) + len(PASSES)
    profile = load_profile(out)
    assert (profile.name, profile.model, profile.source) == (
        "points",
        "llama-3.1-8b",
        "fitted to 12 points of points.csv",
    )
    for start, end in [*RANGES, (100, 50_000)]:
        assert profile.prefill_s(start, end) == pytest.approx(truth.prefill_s(start, end), rel=1e-6)
    for batch, context in PASSES:
        assert profile.decode_s(batch, context) == pytest.approx(truth.decode_s(batch, context), rel=1e-6)
    text = report.render()
    assert "prefill: a_s 0.006, b_s 4e-05, q_s 2.4e-10" in text
    assert "decode of 64 with 64000 tokens" in text
    assert text.endswith("error: mean 0.0%, largest 0.0%")


def test_noise_is_told(tmp_path):
    truth = linear_profile(a_s=0.006, b_s=4e-5, q_s=2.4e-10, decode_a_s=0.01, decode_b_s=2e-5, decode_c_s=1.3e-8)
    report = fit(written(tmp_path / "points.csv", truth, Random(3), noise=0.05))
    assert 0.005 < report.mean_error < 0.05 < report.max_error + 0.03
    assert f"largest {report.max_error:.1%}" in report.render()


@pytest.mark.parametrize("name", ["llama3.1-70b-bf16_h100_sxm_tp8", "qwen3-32b-bf16_h200_sxm_tp2"])
def test_the_measured_tables_of_dense_models_are_nearly_linear(name, tmp_path):
    """Within 2 % on average and 8 % at worst, over a range of 256 in length."""
    section = read_file(profile_path(name)).prefill
    rows = [f"0,{n},{s}" for n, s in section.points] + [f"{c},{n},{s}" for c, n, s in section.cached_points]
    path = tmp_path / "table.csv"
    path.write_text("cached_tokens,end_tokens,seconds\n" + "\n".join(rows))
    report = fit(path)
    assert report.mean_error < 0.02
    assert report.max_error < 0.08
    assert not report.profile.decodes


rows = st.lists(
    st.tuples(st.floats(1, 1e3), st.floats(1, 1e3), st.floats(0.1, 10)),
    min_size=5,
    max_size=12,
    unique_by=lambda r: r[0],
)


@given(rows)
def test_no_neighbour_of_the_fit_is_better(measured):
    """The optimum of a convex problem: no step that keeps the coefficients at 0 or above lowers the loss."""
    matrix, seconds = [(1.0, x, y) for x, y, _ in measured], [s for _, _, s in measured]

    def loss(solution):
        return sum(
            (sum(a * c for a, c in zip(row, solution, strict=True)) / s - 1) ** 2
            for row, s in zip(matrix, seconds, strict=True)
        )

    try:
        found = _least_squares(matrix, seconds, "x")
    except ConfigError:
        return
    assert min(found) >= 0
    least = loss(found)
    for i in range(3):
        for step in (-1e-3, 1e-3):
            moved = list(found)
            moved[i] = max(0.0, moved[i] + step * max(found[i], 1e-3))
            assert loss(moved) >= least * (1 - 1e-9) - 1e-9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prefill: 3 coefficients need as many points, got 0"),
        ("tokens,seconds\n", r"p.csv:1: the first line names the columns: .* got tokens, seconds"),
        ("cached_tokens,end_tokens,seconds,seconds\n", "p.csv:1: the first line"),
        ("cached_tokens,end_tokens,seconds\n0,10\n", r"p.csv:2: expected 3 cells"),
        ("cached_tokens,end_tokens,seconds\n\n0,ten,1\n", "p.csv:3: end_tokens: expected a whole number, got 'ten'"),
        ("cached_tokens,end_tokens,seconds\n0,10,soon\n", "p.csv:2: seconds: expected a number, got 'soon'"),
        ("cached_tokens,end_tokens,seconds\n0,10,nan\n", "p.csv:2: seconds: expected a finite number above 0"),
        ("cached_tokens,end_tokens,seconds\n0,10,-1\n", "p.csv:2: seconds: expected a finite number above 0, got -1"),
        ("cached_tokens,end_tokens,seconds\n10,10,1\n", "p.csv:2: expected 0 <= cached_tokens < end_tokens, got 10"),
        ("cached_tokens,end_tokens,seconds\n0,,1\n", r"p.csv:2: expected seconds and either .* got cached_tokens, sec"),
        ("batch,context_tokens,seconds\n0,10,1\n", "p.csv:2: expected batch of at least 1"),
        ("cached_tokens,end_tokens,seconds\n0,10,1\n0,20,2\n0,20,2\n", "the points do not tell 3 coefficients apart"),
        ("cached_tokens,end_tokens,seconds\n0,10,1\n0,20,1\n0,30,1\n", "prefill: more tokens took no longer"),
    ],
)
def test_bad_points_are_refused(text, message, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        fit(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.csv: cannot be read as CSV: .*No such file"):
        fit(tmp_path / "gone.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.csv: cannot be read as CSV"):
        fit(tmp_path / "binary.csv")
