"""The approximate prefix tree, against a list that is looked through."""

from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.policies.remembered import Remembered

from ..fleets import chain

A = chain(("a", 6))
B = chain(("a", 3), ("b", 3))


class Naive:
    """Per holder a list of blocks, the most recently sent last, and among those of one prompt the first last."""

    def __init__(self, blocks_max):
        self.blocks_max = blocks_max
        self.lists = {}

    def sent(self, holder, keys):
        kept = [key for key in self.lists.get(holder, []) if key not in keys]
        self.lists[holder] = (kept + list(reversed(keys)))[-self.blocks_max :]

    def match(self, keys):
        found = {}
        for holder, blocks in self.lists.items():
            depth = 0
            while depth < len(keys) and keys[depth] in blocks:
                depth += 1
            found[holder] = depth
        return {holder: depth for holder, depth in found.items() if depth}


prompts = st.builds(
    lambda parts: chain(*parts),
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 3)), min_size=1, max_size=3),
)
steps = st.lists(st.tuples(st.sampled_from(["sent", "sent", "sent", "forget"]), st.sampled_from("abc"), prompts))


@settings(max_examples=100, deadline=None)
@given(steps=steps, blocks_max=st.integers(1, 12), asked=prompts)
def test_it_matches_what_is_looked_through(steps, blocks_max, asked):
    tree, naive = Remembered(blocks_max), Naive(blocks_max)
    for what, holder, keys in steps:
        if what == "sent":
            tree.sent(holder, keys)
            naive.sent(holder, keys)
        else:
            tree.forget(holder)
            naive.lists.pop(holder, None)
        tree.check()
    assert tree.match(asked) == naive.match(asked)
    assert {holder: tree.size(holder) for holder in "abc"} == {h: len(naive.lists.get(h, [])) for h in "abc"}
    for holder in "abc":
        tree.forget(holder)
    assert len(tree) == 0
    tree.check()


def test_leaves_go_before_what_they_hang_on():
    tree = Remembered(8)
    tree.sent("w", A)
    tree.sent("w", B)
    assert tree.match(A) == {"w": 5}, "nine blocks for a bound of eight: the last of A is gone"
    assert tree.match(B) == {"w": 6}


def test_a_prompt_beyond_the_bound_is_remembered_by_its_beginning():
    tree = Remembered(4)
    tree.sent("w", A)
    assert tree.match(A) == {"w": 4}
    assert tree.size("w") == 4


def test_each_holder_has_its_own_depth():
    tree = Remembered(100)
    tree.sent("v", A)
    tree.sent("w", B)
    assert tree.match(A) == {"v": 6, "w": 3}
    assert tree.match(()) == {}
    tree.sent("v", ())
    tree.forget("nobody")
    assert len(tree) == 12
