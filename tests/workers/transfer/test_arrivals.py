"""`Arrivals` against a plain set of cells."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from homing.workers.transfer import Arrivals, Piece

BLOCKS, LAYERS = 6, 5


@st.composite
def pieces(draw: st.DrawFn) -> Piece:
    layer = draw(st.integers(0, LAYERS - 1))
    block = draw(st.integers(0, BLOCKS - 1))
    return Piece(
        layer_first=layer,
        layer_count=draw(st.integers(1, LAYERS - layer)),
        block_first=block,
        block_count=draw(st.integers(1, BLOCKS - block)),
    )


def cells(piece: Piece) -> set[tuple[int, int]]:
    return {(b, x) for b in piece.positions for x in range(piece.layer_first, piece.layer_end)}


@given(st.lists(pieces(), max_size=12), pieces())
def test_is_a_set_of_cells(added: list[Piece], probe: Piece) -> None:
    arrivals, naive = Arrivals(blocks=BLOCKS, layers=LAYERS), set[tuple[int, int]]()
    for piece in added:
        assert arrivals.overlaps(piece) == bool(cells(piece) & naive)
        arrivals.add(piece)
        naive |= cells(piece)
    whole = [all((b, x) in naive for x in range(LAYERS)) for b in range(BLOCKS)]
    incomplete = [b for b in range(BLOCKS) if not whole[b]]
    assert arrivals.complete == all(whole)
    assert arrivals.blocks_complete == sum(whole)
    assert arrivals.front_blocks == (incomplete[0] if incomplete else BLOCKS)
    assert arrivals.back_blocks == (BLOCKS - 1 - incomplete[-1] if incomplete else BLOCKS)
    if incomplete:
        assert arrivals.remaining == range(incomplete[0], incomplete[-1] + 1)
    else:
        assert len(arrivals.remaining) == 0
    for position in probe.positions:
        runs = arrivals.layer_runs(probe, position)
        flat = [(layer, there) for run, there in runs for layer in run]
        assert flat == [(x, (position, x) in naive) for x in range(probe.layer_first, probe.layer_end)]
        assert all(a[1] != b[1] for a, b in pairwise(runs))
