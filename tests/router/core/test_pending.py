"""Prefixes that are being computed, against a model that compares block by block."""

from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.blocks import block_keys, pack_tokens
from homing.router.core.pending import PendingPrefixes
from homing.router.core.types import RequestId, WorkerId

from .fleets import chain

A, B = WorkerId("a"), WorkerId("b")
DOC = chain(("doc", 10))

prompts = st.lists(st.integers(0, 1), max_size=12).map(lambda tokens: block_keys(pack_tokens(tokens), 1))
"""Of blocks of one token out of two: most of them begin alike."""
begins = st.tuples(
    st.sampled_from("rstu"), st.sampled_from([A, B]), prompts, st.integers(0, 12), st.integers(0, 12)
).map(lambda begin: (*begin[:3], min(begin[3], len(begin[2])), min(begin[4], len(begin[2]))))
ends = st.sampled_from("rstux").map(lambda name: (name,))


def common(keys, others):
    length = 0
    for one, other in zip(keys, others, strict=False):
        if one != other:
            break
        length += 1
    return length


def coming(model, keys):
    """Who will hold more of the prompt than what it held before."""
    lengths = [(worker, common(keys, others[:end]), first) for worker, others, first, end in model.values()]
    return [(worker, length) for worker, length, first in lengths if length > first]


@given(st.lists(begins | ends, max_size=20), prompts)
def test_it_equals_the_model(steps, asked):
    pending, model = PendingPrefixes(), {}
    for name, *rest in steps:
        if rest:
            worker, keys, first, end = rest
            pending.begin(RequestId(name), worker, keys, first, end)
            if first < end:
                model[name] = worker, keys, first, end
        else:
            pending.end(RequestId(name))
            model.pop(name, None)
        assert len(pending) == len(model)
        assert list(pending.coming(asked)) == coming(model, asked)
        assert list(pending.coming(asked + DOC)) == coming(model, asked + DOC)


def test_what_is_held_already_is_not_coming():
    """The index knows of it."""
    pending = PendingPrefixes()
    pending.begin(RequestId("r"), A, DOC, 4, 10)
    assert list(pending.coming(DOC[:4])) == []
    assert list(pending.coming(DOC[:5])) == [(A, 5)]
    assert list(pending.coming(DOC[:5] + chain(("else", 3)))) == [(A, 5)]


def test_no_more_is_promised_than_is_computed():
    pending = PendingPrefixes()
    pending.begin(RequestId("r"), A, DOC, 0, 7)
    assert list(pending.coming(DOC)) == [(A, 7)]


def test_several_compute_the_same():
    pending = PendingPrefixes()
    pending.begin(RequestId("r"), A, DOC, 0, 10)
    pending.begin(RequestId("s"), B, DOC[:6], 2, 6)
    assert list(pending.coming(DOC)) == [(A, 10), (B, 6)]
    pending.end(RequestId("r"))
    assert list(pending.coming(DOC)) == [(B, 6)]


def test_what_has_nothing_to_compute_is_not_remembered():
    pending = PendingPrefixes()
    pending.begin(RequestId("r"), A, DOC, 10, 10)
    pending.begin(RequestId("s"), A, (), 0, 0)
    assert len(pending) == 0
    assert list(pending.coming(())) == []
