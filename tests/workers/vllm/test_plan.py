"""What a request loads, against a slow search: no gap, the own store first, as far as anybody reaches."""

from hypothesis import given
from hypothesis import strategies as st

from homing.workers.vllm.params import Source
from homing.workers.vllm.plan import plan_load


@st.composite
def sources(draw):
    first = draw(st.integers(0, 8))
    return Source(address=f"h:{draw(st.integers(1, 9))}", first=first, end=first + draw(st.integers(1, 8)))


@given(
    blocks=st.integers(0, 10),
    local=st.integers(0, 10),
    usable=st.integers(0, 12),
    held=st.sets(st.integers(0, 9)),
    givers=st.lists(sources(), max_size=4),
)
def test_a_plan_is_an_unbroken_run(blocks, local, usable, held, givers):
    keys = list(range(blocks))
    segments = plan_load(keys, local, usable, held, givers)
    end = min(usable, blocks)
    at = local
    for segment in segments:
        assert segment.first == at < segment.end <= end
        positions = range(segment.first, segment.end)
        if segment.source is None:
            assert held.issuperset(positions)
        else:
            assert segment.source in givers
            assert segment.source.first <= segment.first
            assert segment.end <= segment.source.end
            assert segment.first not in held
        at = segment.end
    reachable = local
    while reachable < end and (reachable in held or any(s.first <= reachable < s.end for s in givers)):
        reachable += 1
    assert at == max(local, reachable)
