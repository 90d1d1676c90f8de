"""The scheduler's half: what a request loads, which blocks are kept, what its answer tells."""

from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.blocks import block_keys, group_seed, pack_tokens
from homing.workers.vllm.orders import LoadResult, StepReport
from homing.workers.vllm.params import Transfer
from homing.workers.vllm.scheduler_side import LOADS_MAX, SchedulerSide

from .engines import BLOCK_TOKENS, Request, keys_of, prompt, step

SOURCE = {"address": "h:1", "block_first": 0, "block_end": 8}


def asked(*sources, **more):
    return {"homing": {"sources": list(sources), **more}}


def test_a_prompts_last_token_is_always_computed():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    whole = Request("a", prompt(1, 16), asked(SOURCE))
    longer = Request("b", prompt(1, 17), asked(SOURCE))
    assert side.matched_tokens(whole, 0) == 12
    assert side.matched_tokens(longer, 0) == 16


def test_prompts_shorter_than_a_block_move_nothing():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    for tokens in range(BLOCK_TOKENS + 1):
        request = Request(f"r{tokens}", prompt(1, tokens), asked(SOURCE))
        assert side.matched_tokens(request, 0) == 0
        side.allocated(request, [0, 1], 0)
        assert side.step_orders(step((request, [0, 1], 0, tokens))).loads == ()
        assert side.finished(request)["homing"]["loaded_blocks"] == 0


def test_a_load_covers_what_the_device_lacks():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    request = Request("a", prompt(2, 30), asked(SOURCE, ticket="t"))
    assert side.matched_tokens(request, 8) == 5 * BLOCK_TOKENS
    side.allocated(request, [9, 8, 7, 6, 5, 4, 3], 5 * BLOCK_TOKENS)
    (order,) = side.step_orders(step()).loads
    assert (order.request_id, order.ticket, order.first) == ("a", "t", 2)
    assert order.block_ids == (7, 6, 5, 4, 3)
    assert order.keys == keys_of(request.prompt_token_ids)[2:7]
    assert [source.address for source in order.sources] == ["h:1"]
    assert side.step_orders(step()).loads == (), "an order is given once"


def test_a_source_is_asked_once_and_the_store_again():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    request = Request("a", prompt(3, 20), asked(SOURCE))
    assert side.matched_tokens(request, 0) == 16
    side.allocated(request, [1, 2, 3, 4], 16)
    side.step_orders(step())
    side.reported(StepReport(results=(LoadResult(request_id="a", blocks=0),)))
    assert side.matched_tokens(request, 0) == 0
    side.reported(StepReport(stored=keys_of(request.prompt_token_ids)[:2]))
    assert side.matched_tokens(request, 0) == 8


def test_loads_of_one_request_are_bounded():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    request = Request("a", prompt(3, 20))
    side.reported(StepReport(stored=keys_of(request.prompt_token_ids)))
    for _ in range(LOADS_MAX):
        assert side.matched_tokens(request, 0) == 16
        side.allocated(request, [1, 2, 3, 4], 16)
    assert side.matched_tokens(request, 0) == 0


def test_blocks_are_kept_once_when_they_are_whole():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    request = Request("a", prompt(4, 11), asked(publish={"lease_s": 9}))
    side.matched_tokens(request, 0)
    side.allocated(request, [5, 6, 7], 0)
    (first,) = side.step_orders(step((request, [5, 6, 7], 0, 6))).saves
    assert (first.first, first.block_ids, first.lease_s) == (0, (5,), 9.0)
    (second,) = side.step_orders(step(cached=[("a", None, 6, 5)])).saves
    assert (second.first, second.block_ids) == (1, (6,))
    assert second.keys == keys_of(request.prompt_token_ids)
    # The third block is whole only when its token is known.
    assert side.step_orders(step(cached=[("a", None, 11, 1)])).saves == ()
    request.output = [1, 2]
    (third,) = side.step_orders(step(cached=[("a", ([8]), 12, 1)])).saves
    assert (third.first, third.block_ids) == (2, (7,))


def test_a_resumed_request_has_other_blocks():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    request = Request("a", prompt(5, 16))
    side.matched_tokens(request, 0)
    side.step_orders(step((request, [1, 2, 3, 4], 0, 8)))
    (order,) = side.step_orders(step(cached=[("a", [7, 8, 9, 10], 8, 8, "resumed")])).saves
    assert order.block_ids == (9, 10)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_block_is_kept_exactly_once(data):
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    length = data.draw(st.integers(1, 40))
    request = Request("a", prompt(length, length))
    side.matched_tokens(request, 0)
    ids = list(range(100, 100 + length // BLOCK_TOKENS + 3))
    computed, kept, first = 0, [], True
    while computed < length:
        count = data.draw(st.integers(1, length - computed))
        output = step((request, ids, 0, count)) if first else step(cached=[("a", None, computed, count)])
        for order in side.step_orders(output).saves:
            assert order.keys[order.first :] == keys_of(request.all_token_ids)[order.first : len(order.keys)]
            kept += order.block_ids
        computed, first = computed + count, False
        assert kept == ids[: computed // BLOCK_TOKENS]


def test_salts_and_loras_have_keys_of_their_own():
    class Lora:
        lora_name = "l"

    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    tokens = prompt(6, 9)
    plain, salted = Request("a", tokens), Request("b", tokens, cache_salt="s")
    lora = Request("c", tokens, lora_request=Lora())
    seeds = [group_seed(), group_seed(tenant_salt="s"), group_seed(lora="l")]
    for request, seed in zip((plain, salted, lora), seeds, strict=True):
        side.matched_tokens(request, 0)
        (order,) = side.step_orders(step((request, [1, 2, 3], 0, 9))).saves
        assert order.keys == block_keys(pack_tokens(tokens), BLOCK_TOKENS, seed=seed)


def test_images_and_embeddings_are_left_alone():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    image = Request("a", prompt(7, 20), asked(SOURCE), mm_features=["image"])
    embedded = Request("b", prompt(7, 20), asked(SOURCE), prompt_embeds=object())
    for request in (image, embedded):
        assert side.matched_tokens(request, 0) == 0
        assert side.step_orders(step((request, [1, 2, 3, 4, 5], 0, 20))).saves == ()


def test_an_answer_tells_what_happened():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    side.address = "me:5"
    request = Request("a", prompt(8, 20), asked(SOURCE))
    side.matched_tokens(request, 4)
    side.allocated(request, [1, 2, 3, 4, 5], 12)
    side.step_orders(step())
    transfer = Transfer(address="h:1", bytes=9, blocks=2, seconds=1.0, flowing_s=0.5, rtt_s=0.1, complete=False)
    side.reported(StepReport(results=(LoadResult(request_id="a", blocks=2, transfers=(transfer,)),)))
    side.step_orders(step((request, [1, 2, 3, 4, 5], 12, 8)))
    own = side.finished(request)["homing"]
    assert (own["address"], own["held_blocks"], own["loaded_blocks"]) == ("me:5", 5, 2)
    assert own["computed_from_tokens"] == 12
    assert own["transfers"][0]["address"] == "h:1"
    assert side.finished(request) is None


def test_requests_that_do_not_ask_are_not_told():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    request = Request("a", prompt(8, 20))
    side.matched_tokens(request, 0)
    assert side.finished(request) is None


def test_a_request_that_leaves_ends_its_load():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    request = Request("a", prompt(9, 20), asked(SOURCE))
    side.matched_tokens(request, 0)
    side.allocated(request, [1, 2, 3, 4], 16)
    side.finished(request)
    orders = side.step_orders(step())
    assert [order.request_id for order in orders.loads] == ["a"]
    assert orders.cancelled == ("a",)


def test_events_name_what_is_stored_by_the_engines_hashes():
    side = SchedulerSide(block_tokens=BLOCK_TOKENS)
    request = Request("a", prompt(10, 9), cache_salt="s")
    side.matched_tokens(request, 0)
    (order,) = side.step_orders(step((request, [1, 2, 3], 0, 9))).saves
    side.reported(StepReport(stored=order.keys))
    names, removed = side.take_events()
    assert [name.tokens for name in names] == [tuple(request.prompt_token_ids[i : i + 4]) for i in (0, 4)]
    assert [name.engine_parent for name in names] == [None, request.block_hashes[0]]
    assert [name.salt for name in names] == ["s", None]
    assert removed == []
    side.reported(StepReport(removed=order.keys[1:]))
    assert side.take_events() == ([], [request.block_hashes[1]])
    assert side.take_events() == ([], [])
