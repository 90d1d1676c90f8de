"""Transforms, the writer, and sections of a scenario file."""

import gzip
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.errors import ConfigError
from homing.sim.rng import Streams
from homing.sim.workload import transform
from homing.sim.workload.arrival import Arrival
from homing.sim.workload.mooncake import read_mooncake
from homing.sim.workload.spec import WorkloadSpec, build, describe
from homing.sim.workload.tracefile import ReadCounts
from homing.sim.workload.write import write_mooncake

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "sim" / "scenarios" / "traces"
TRACE = {"kind": "mooncake", "path": "conversation-10min.jsonl.gz"}


@st.composite
def workloads(draw):
    """Any arrivals in order, with keys for all full blocks or for none."""
    arrivals, block_tokens = [], draw(st.sampled_from([1, 16, 512]))
    times = sorted(draw(st.lists(st.floats(0, 1e5), max_size=20)))
    for number, at_s in enumerate(times):
        prompt, output = draw(st.integers(1, 20 * block_tokens)), draw(st.integers(1, 3 * block_tokens))
        full = prompt // block_tokens
        more = (prompt + output) // block_tokens - full
        keyed = draw(st.booleans())
        keys = draw(st.lists(st.integers(0, 2**64 - 1), min_size=full + more, max_size=full + more)) if keyed else []
        arrivals.append(
            Arrival(
                id=f"r{number}",
                at_s=at_s,
                prompt_tokens=prompt,
                output_tokens=output,
                block_tokens=block_tokens,
                keys=tuple(keys[:full]),
                answer_keys=tuple(keys[full:]) if draw(st.booleans()) else (),
                session=draw(st.none() | st.sampled_from(["", "a", "b", "c"])),
                origin=draw(st.none() | st.sampled_from(["", "x", "y"])),
                tenant=draw(st.sampled_from(["", "t"])),
                priority=draw(st.integers(-3, 3)),
            )
        )
    return arrivals


def replaced(arrival, changes):
    fields = {name: getattr(arrival, name) for name in Arrival.__dataclass_fields__}
    return Arrival(**{**fields, **changes})


@given(arrivals=workloads(), suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_what_was_written_is_read_again(tmp_path_factory, arrivals, suffix):
    path = tmp_path_factory.mktemp("trace") / f"t{suffix}"
    assert write_mooncake(arrivals, path) == len(arrivals)
    rounded = [replaced(arrival, {"at_s": round(arrival.at_s * 1e6) / 1000 / 1000}) for arrival in arrivals]
    assert list(read_mooncake(path)) == rounded
    assert all(abs(one.at_s - two.at_s) <= 0.51e-6 for one, two in zip(arrivals, rounded, strict=True))
    first = path.read_bytes()
    write_mooncake(read_mooncake(path), again := path.with_name(f"again{suffix}"))
    assert again.read_bytes() == first, "also compressed (I5)"


def test_a_trace_is_written_as_it_was(tmp_path):
    """Mooncake's own lines, but for the ids of incomplete blocks and of requests."""
    source = EXAMPLES / TRACE["path"]
    write_mooncake(islice(read_mooncake(source), 100), path := tmp_path / "t.jsonl")
    with gzip.open(source) as file:
        for was, line in zip(file, path.read_bytes().splitlines(), strict=False):
            one, two = msgspec.json.decode(was), msgspec.json.decode(line)
            full = one["input_length"] // 512
            assert len(one["hash_ids"]) == len(two["hash_ids"])
            one["hash_ids"], two["hash_ids"] = one["hash_ids"][:full], two["hash_ids"][:full]
            assert {**one, "id": two["id"]} == two


def test_what_cannot_be_written(tmp_path):
    torn = Arrival(id="r", at_s=0, prompt_tokens=64, output_tokens=1, block_tokens=16, keys=(1, 2))
    with pytest.raises(ValueError, match="expected one for each of 4 full blocks, got 2 in r"):
        write_mooncake([torn], tmp_path / "t.jsonl")
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        write_mooncake([], tmp_path / "nowhere" / "t.jsonl")


TRANSFORMS = {
    "time": lambda arrivals, _: transform.scale_time(arrivals, 0.3),
    "speed up": lambda arrivals, random: transform.scale_rate(arrivals, 3.0, random),
    "thin": lambda arrivals, random: transform.scale_rate(arrivals, 0.5, random),
    "sample": lambda arrivals, random: transform.sample(arrivals, 0.5, random, by="request"),
    "sessions": lambda arrivals, _: transform.name_sessions(arrivals, 16),
    "origins": lambda arrivals, random: transform.assign_origins(arrivals, {"a": 1, "b": 3}, random),
    "turn": lambda arrivals, random: transform.assign_origins(arrivals, {"a": 1, "b": 3}, random, by="round_robin"),
    "spread": lambda arrivals, random: transform.spread(arrivals, 3.0, random),
    "offset": lambda arrivals, _: transform.offset(arrivals, -20.0),
    "limit": lambda arrivals, _: transform.limit(arrivals, 5, 1000.0),
    "relabel": lambda arrivals, _: transform.relabel(arrivals, tenant="t", priority=2),
    "merge": lambda arrivals, _: transform.merge(arrivals, transform.offset(arrivals, 1.0)),
}


@settings(max_examples=30)
@pytest.mark.parametrize("name", TRANSFORMS)
@given(arrivals=workloads())
def test_transforms_keep_the_order_and_repeat_themselves(name, arrivals):
    change = TRANSFORMS[name]
    changed = list(change(arrivals, Random(3)))
    assert changed == list(change(arrivals, Random(3)))
    assert all(one.at_s <= two.at_s for one, two in pairwise(changed))
    if name != "merge":
        numbers = [int(arrival.id[1:]) for arrival in changed]
        assert numbers == sorted(set(numbers)), "the order of the workload, and nothing twice"


@given(workloads(), st.floats(0, 1), st.integers())
def test_a_sample_of_sessions_keeps_whole_ones(arrivals, fraction, seed):
    kept = {a.id for a in transform.sample(arrivals, fraction, Random(seed))}
    for session in {a.session for a in arrivals if a.session is not None}:
        members = {a.id for a in arrivals if a.session == session}
        assert members <= kept or not members & kept
    assert not fraction or list(transform.sample(arrivals, 1.0, Random(seed))) == arrivals


def many(count, sessions=None):
    return [
        Arrival(
            id=f"r{number}",
            at_s=float(number),
            prompt_tokens=1,
            output_tokens=1,
            block_tokens=1,
            session=None if sessions is None else f"s{number % sessions}",
        )
        for number in range(count)
    ]


def test_fractions_and_weights_are_met():
    arrivals = many(20_000)
    for by in ("session", "request"):
        kept = sum(1 for _ in transform.sample(arrivals, 0.3, Random(1), by=by))
        assert kept / 20_000 == pytest.approx(0.3, abs=0.015)
    origins = [a.origin for a in transform.assign_origins(arrivals, {"a": 1, "b": 2, "c": 5}, Random(1))]
    assert [origins.count(site) / 20_000 for site in "abc"] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.015)
    turns = [a.origin for a in transform.assign_origins(arrivals, {"a": 1, "b": 9}, Random(1), by="round_robin")]
    assert turns[:4] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("by", ["session", "round_robin"])
def test_a_conversation_stays_at_one_origin(by):
    placed = transform.assign_origins(many(1000, sessions=37), {"a": 1, "b": 1, "c": 1}, Random(1), by=by)
    assert len({(a.session, a.origin) for a in placed}) == 37


def test_rate_scale_thins_or_speeds_up():
    arrivals = many(1000)
    thin, fast = (list(transform.scale_rate(arrivals, factor, Random(1))) for factor in (0.5, 2.0))
    assert 400 < len(thin) < 600 and {a.at_s for a in thin} <= {a.at_s for a in arrivals}
    assert [a.at_s for a in fast] == [a.at_s / 2 for a in arrivals]


def test_spreading_fills_the_grid_of_the_conversation_trace():
    literal = list(read_mooncake(EXAMPLES / TRACE["path"]))
    even = list(transform.spread(literal, 3.0, Random(1)))
    assert [a.id for a in even] == [a.id for a in literal]
    assert len({round(a.at_s) for a in literal}) <= 200
    assert len({a.at_s for a in even}) == len(even)
    for was, now in zip(literal, even, strict=True):
        cell = round(was.at_s / 3) * 3
        assert cell <= now.at_s <= cell + 3 and abs(was.at_s - cell) < 0.1


def test_sessions_are_guessed_from_the_first_block_of_their_own():
    arrivals = list(transform.name_sessions(read_mooncake(EXAMPLES / TRACE["path"]), 512))
    for arrival in arrivals:
        assert (arrival.session is not None) == (len(arrival.keys) > 1)
    sessions = [a.session for a in arrivals if a.session is not None]
    assert 0.5 * len(sessions) < len(set(sessions)) < len(sessions)


def built(section, seed=1, **options):
    return build(msgspec.convert(section, type=WorkloadSpec), Streams(seed), EXAMPLES, **options)


KINDS = [
    TRACE,
    {"kind": "prompts", "arrivals": {"kind": "gamma", "cv": 3}},
    {"kind": "prfaas", "arrivals": {"kind": "poisson", "rate_per_s": 3.2}},
    {"kind": "families", "shift_every_s": 60, "arrivals": {"kind": "mmpp"}},
    {"kind": "sessions", "user": {"kind": "constant", "tokens": 40}},
    {"kind": "fanout", "arrivals": {"kind": "diurnal", "zones": [{"site": "a"}, {"site": "b", "utc_offset_h": 9}]}},
    {
        "kind": "merge",
        "parts": [TRACE, TRACE, {"kind": "sessions"}, {"kind": "merge", "parts": [{"kind": "families"}]}],
    },
]
COMMON = {
    "session_after_tokens": 512, "sample": 0.9, "spread_s": 3, "time_scale": 0.5, "rate_scale": 2, "offset_s": 1,
    "until_s": 50, "limit": 40, "origins": {"sites": {"x": 1, "y": 2}}, "tenant": "t", "priority": 1,
}  # fmt: skip


@pytest.mark.parametrize("section", KINDS, ids=lambda section: section["kind"])
def test_each_kind_is_built_with_all_transforms(section):
    first, again = (list(built({**section, **COMMON, "limit": 40})) for _ in range(2))
    assert first == again, "I5"
    assert 2 <= len(first) <= 40
    assert [a.at_s for a in first] == sorted(a.at_s for a in first)
    assert all(1 <= a.at_s < 50 and a.origin in {"x", "y"} and a.tenant == "t" and a.priority == 1 for a in first)
    assert len({a.id for a in first}) == len(first)
    assert list(built({**section, **COMMON}, seed=2)) != first
    assert section["kind"] in describe(msgspec.convert({**section, **COMMON}, type=WorkloadSpec))


def test_every_kind_ends_when_its_taker_does():
    for section in KINDS:
        assert len(list(islice(built(section), 20))) == 20


def test_parts_have_their_own_names_and_one_file_its_own_blocks():
    arrivals = list(built({"kind": "merge", "parts": [TRACE, TRACE, {**TRACE, "namespace": "other"}]}))
    assert len({a.id for a in arrivals}) == len(arrivals) == 3 * 1750
    by_part = {part: {key for a in arrivals if a.id.startswith(part) for key in a.keys} for part in ("0.", "1.", "2.")}
    assert by_part["0."] == by_part["1."]
    assert not by_part["0."] & by_part["2."]


def test_descriptions_say_how_a_grid_was_replayed():
    literal, even = (msgspec.convert({**TRACE, **more}, type=WorkloadSpec) for more in ({}, {"spread_s": 3}))
    assert describe(literal) == "mooncake conversation-10min.jsonl.gz: times as in the trace"
    assert describe(even) == "mooncake conversation-10min.jsonl.gz: spread over cells of 3.0 s"


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"kind": "mooncake"}, "missing required field `path`"),
        ({**TRACE, "speed": 2}, "unknown field `speed`"),
        ({**TRACE, "time_scale": 0}, "time_scale"),
        ({"kind": "novel"}, "Invalid value 'novel'"),
        ({"kind": "merge", "parts": []}, "length >= 1"),
        (
            {"kind": "prompts", "arrivals": {"kind": "mmpp", "states": [{"rate_per_s": 0, "mean_s": 1}]}},
            r"`\$.arrivals`",
        ),
        ({**TRACE, "origins": {"sites": {}}}, "length >= 1"),
        ({"kind": "fanout", "siblings": 0}, "siblings"),
    ],
)
def test_sections_that_cannot_be(section, problem):
    with pytest.raises(msgspec.ValidationError, match=problem):
        msgspec.convert(section, type=WorkloadSpec)


def test_a_missing_trace_is_said_at_once():
    with pytest.raises(ConfigError, match=r"path: expected a file, found none at .*nowhere\.jsonl"):
        built({"kind": "mooncake", "path": "nowhere.jsonl"})


def test_lenient_sections_count(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{\n')
    section = {"kind": "mooncake", "path": str(tmp_path / "t.jsonl"), "strict": False}
    counts = ReadCounts()
    assert len(list(built(section, counts=counts))) == 1
    assert counts.bad == 1


def test_workloads_are_the_same_in_every_process():
    """I5: whatever the seed of built-in hashes."""
    code = (
        "import msgspec; from pathlib import Path; from xxhash import xxh3_64_hexdigest;"
        "from homing.sim.rng import Streams; from homing.sim.workload.spec import *;"
        f"spec = msgspec.convert({ {**KINDS[-1], **COMMON}!r}, type=WorkloadSpec);"
        f"print(xxh3_64_hexdigest(repr(list(build(spec, Streams(7), Path({str(EXAMPLES)!r})))).encode()))"
    )
    digests = set()
    for hash_seed in ("0", "1"):
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
        found = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
        )
        digests.add(found.stdout.strip())
    assert len(digests) == 1
    assert digests != {""}
