"""The five kinds of plan, carried out: by hand to the microsecond on an idle fleet, and token by token in any run."""

from dataclasses import replace

import pytest

from .worlds import BLOCK, BYTES_PER_TOKEN, arrival, document, link, run, worker

DISPATCH_S = 0.002
NEAR_S = 1e-4
"""One way inside a site."""
SETUP_RTTS = 2.5


def prefill_s(tokens: int) -> float:
    return 0.01 + 1e-4 * tokens


def decode_s(context: int, batch: int = 1) -> float:
    return 0.02 + 1e-4 * batch + 1e-8 * context


def busy_holder(tokens: int = 8000) -> list:
    """A first request that warms a worker and keeps its only place for long."""
    return arrival("first", tokens=tokens, shared=tokens, output=2000)


def two_sites(**keys) -> dict:
    """`w` may run one request; `v` is far away, over a link that the router knows."""
    far = {"role": keys.pop("role", "both")}
    workers = worker("w", "home", requests_max=1), worker("v", "away", **far)
    return document(*workers, links=[link("home", "away", **keys)], router={"site": "home"})


def test_local():
    _, records = run(document(), [arrival(tokens=1000, output=10)])
    record = records["r"]
    assert (record.plan, record.prefill, record.decode) == ("local", "w-1", "w-1")
    assert record.ttft_s == pytest.approx(2 * NEAR_S + DISPATCH_S + prefill_s(1000), abs=1e-9)
    decoding_s = sum(decode_s(1000 + number) for number in range(9))
    assert record.e2e_s == pytest.approx(record.ttft_s + decoding_s, abs=1e-9)
    assert record.tpot_s == pytest.approx(decoding_s / 9, abs=1e-9)
    assert record.worst_itl_s == pytest.approx(decode_s(1008), abs=1e-9)
    assert (record.device_hit_tokens, record.computed_tokens, record.output_tokens) == (0, 1000, 10)


def test_local_on_a_cached_prefix():
    """The second of two prompts that share 800 tokens; the last token of a prompt is always computed."""
    coming = [arrival("a", shared=800), arrival("b", 5.0, shared=800), arrival("c", 9.0, tokens=800, shared=800)]
    _, records = run(document(), coming)
    assert (records["b"].device_hit_tokens, records["b"].computed_tokens) == (800, 200)
    assert records["b"].ttft_s == pytest.approx(2 * NEAR_S + DISPATCH_S + prefill_s(200), abs=1e-9)
    assert (records["c"].device_hit_tokens, records["c"].computed_tokens) == (784, 16)


def test_what_was_answered_is_found_by_the_next_turn():
    """Blocks of an answer have the keys of the next prompt; the last token of an answer has no KV yet."""
    turn, following = arrival("turn", tokens=320, output=64, answers=64), arrival("next", 5.0, tokens=500)
    said = turn.keys + turn.answer_keys
    _, records = run(document(), [turn, replace(following, keys=said + following.keys[len(said) :])])
    assert records["next"].device_hit_tokens == (320 + 63) // BLOCK * BLOCK


def test_fetch():
    """A fast link: too little could be computed meanwhile to be worth a split."""
    _, records = run(
        two_sites(bytes_per_s=1e9, rtt_s=0.002), [busy_holder(), arrival("r", 3.0, tokens=8200, shared=8000)]
    )
    record = records["r"]
    assert (record.plan, record.decode) == ("fetch", "v-1")
    fetch_s = (SETUP_RTTS + 0.5) * 0.002 + 8000 * BYTES_PER_TOKEN / 1e9
    assert record.ttft_s == pytest.approx(0.002 + DISPATCH_S + fetch_s + prefill_s(200), abs=1e-6)
    assert (record.moved_tokens, record.computed_tokens, record.device_hit_tokens) == (8000, 200, 0)
    assert record.moved_bytes == 8000 * BYTES_PER_TOKEN


def test_split():
    """A slow link: some 3,000 tokens are computed while 5,000 come."""
    _, records = run(
        two_sites(bytes_per_s=2e7, rtt_s=0.02), [busy_holder(), arrival("r", 3.0, tokens=8200, shared=8000)]
    )
    record = records["r"]
    assert (record.plan, record.decode) == ("split", "v-1")
    assert record.moved_tokens + record.computed_tokens == 8200
    alone_s = 0.02 + DISPATCH_S + prefill_s(8200)
    fetched_s = 0.02 + DISPATCH_S + 0.06 + 8000 * BYTES_PER_TOKEN / 2e7 + prefill_s(200)
    assert record.ttft_s < 0.9 * min(alone_s, fetched_s)


@pytest.mark.parametrize("bytes_per_s", [1e8, 1e6])
def test_remote(bytes_per_s):
    """Layer by layer: of a quick link only the last sixteenth is seen, of a slow one all from when it was asked."""
    workers = worker("p", "home", role="prefill"), worker("d", "away", role="decode")
    links = [link("home", "away", bytes_per_s=bytes_per_s, rtt_s=0.02)]
    _, records = run(document(*workers, links=links, router={"site": "home"}), [arrival(tokens=4000)])
    record = records["r"]
    assert (record.plan, record.prefill, record.decode) == ("remote", "p-1", "d-1")
    shipped = 249 * BLOCK
    assert record.shipped_bytes == shipped * BYTES_PER_TOKEN
    sending_s = shipped * BYTES_PER_TOKEN / bytes_per_s
    computed_s = NEAR_S + DISPATCH_S + prefill_s(shipped)
    asked_s = 0.01 + DISPATCH_S + SETUP_RTTS * 0.02
    sent_s = max(computed_s + sending_s / 16, asked_s + sending_s)
    assert record.ttft_s == pytest.approx(sent_s + 0.01 + prefill_s(16) + 0.01, abs=1e-6)
    assert (record.computed_tokens, record.moved_tokens, record.device_hit_tokens) == (4000, 0, 0)


def test_direct():
    """A decode worker gets all that can be reused out of a cache and computes the last block, no prefill worker."""
    _, records = run(
        two_sites(role="decode", bytes_per_s=1e9, rtt_s=0.002),
        [busy_holder(8000), arrival("r", 3.0, tokens=8000, shared=8000)],
    )
    record = records["r"]
    assert (record.plan, record.prefill, record.decode) == ("direct", "v-1", "v-1")
    moved = 499 * BLOCK
    fetch_s = (SETUP_RTTS + 0.5) * 0.002 + moved * BYTES_PER_TOKEN / 1e9
    assert record.ttft_s == pytest.approx(0.002 + DISPATCH_S + fetch_s + prefill_s(16), abs=1e-6)
    assert (record.moved_tokens, record.computed_tokens) == (moved, 16)


IDLE = {
    "local": (document(), [arrival("r", tokens=4000)]),
    "fetch": (two_sites(bytes_per_s=1e9, rtt_s=0.002), [busy_holder(), arrival("r", 3.0, tokens=8200, shared=8000)]),
    "split": (two_sites(bytes_per_s=2e7, rtt_s=0.02), [busy_holder(), arrival("r", 3.0, tokens=8200, shared=8000)]),
    "direct": (
        two_sites(role="decode", bytes_per_s=1e9, rtt_s=0.002),
        [busy_holder(), arrival("r", 3.0, tokens=8000, shared=8000)],
    ),
    "remote": (
        document(
            worker("p", "home", role="prefill"),
            worker("d", "away", role="decode"),
            links=[link("home", "away", bytes_per_s=1e8, rtt_s=0.02)],
            router={"site": "home"},
        ),
        [arrival("r", tokens=4000)],
    ),
}


@pytest.mark.parametrize("kind", IDLE)
def test_the_router_knows_an_idle_fleet(kind):
    """What it predicts comes true where nobody else is: it measured the workers, and was told of the links."""
    scenario, arrivals = IDLE[kind]
    _, records = run(scenario, arrivals)
    record = records["r"]
    assert record.plan == kind
    within = 0.1 if kind == "split" else 0.03
    assert record.predicted_ttft_s == pytest.approx(record.ttft_s, rel=within, abs=0.005)


MIXED = {
    "kind": "sessions",
    "block_tokens": BLOCK,
    "limit": 150,
    "arrivals": {"kind": "poisson", "rate_per_s": 1.5},
    "system_tokens": 2048,
    "turns_mean": 5,
    "think_mean_s": 2.0,
    "user": {"kind": "uniform", "min_tokens": 1, "max_tokens": 3000},
    "output": {"kind": "uniform", "min_tokens": 1, "max_tokens": 200},
    "origins": {"sites": {"home": 2, "away": 1}},
}


def mixed(**keys) -> dict:
    """A fleet of all roles in two sites, with tiers, that is asked for enough to make every kind of plan."""
    tiers = {"host_tokens": 20_000, "host_bytes_per_s": 2e8}
    few = {"kv_tokens": 30_000, "requests_max": 4} | tiers
    workers = (
        worker("p", "away", role="prefill", count=2, **few),
        worker("d", "home", role="decode", count=2, **few),
        worker("b", "home", **few),
    )
    links = [link("home", "away", bytes_per_s=3e8, rtt_s=0.01)]
    return document(*workers, links=links, workload=MIXED, **keys)


def test_every_token_of_a_prompt_comes_from_one_place():
    """Found on the device or below it, moved out of another's cache, or computed: what is shipped was one of these
    where it came from.
    """
    found = {}
    for seed in range(2):
        _, records = run(mixed(seed=seed), check_every=0)
        for record in records.values():
            assert record.outcome == "finished"
            here = record.device_hit_tokens + record.host_hit_tokens + record.disk_hit_tokens
            assert here + record.moved_tokens + record.computed_tokens == record.prompt_tokens, record
            assert (record.shipped_bytes > 0) <= (record.plan == "remote")
            found.setdefault(record.plan, []).append(record)
    assert set(found) >= {"local", "fetch", "remote", "split"}
    assert any(record.host_hit_tokens for records in found.values() for record in records)
