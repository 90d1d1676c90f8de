"""Readers of traces: what a line becomes, and what a bad one is called."""

import gzip
import json
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest

from homing.router.core.errors import ConfigError
from homing.sim.workload.azure import read_azure
from homing.sim.workload.burstgpt import read_burstgpt
from homing.sim.workload.mooncake import read_mooncake
from homing.sim.workload.qwen import read_qwen
from homing.sim.workload.tracefile import ReadCounts

ROOT = Path(__file__).resolve().parents[3]
EXCERPT = ROOT / "sim" / "scenarios" / "traces" / "conversation-10min.jsonl.gz"
TRACES = ROOT.parent / "shared" / "traces"
GOOD = {"timestamp": 1500, "input_length": 1100, "output_length": 7, "hash_ids": [4, 5, 6]}


def written(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_line_becomes_an_arrival(tmp_path):
    path = written(tmp_path / "t.jsonl", GOOD, "", {**GOOD, "session_id": 9, "turn": 2, "new_in_2030": []})
    first, second = read_mooncake(path)
    assert (first.at_s, first.prompt_tokens, first.output_tokens, first.block_tokens) == (1.5, 1100, 7, 512)
    assert first.keys == (4, 5), "the third block is not full"
    assert (first.id, first.session, second.id, second.session) == ("r0", None, "r1", "9")


def test_blocks_are_cut_into_those_of_the_engine(tmp_path):
    longer = {**GOOD, "input_length": 1600, "hash_ids": [4, 5, 7, 8]}
    first, second = read_mooncake(written(tmp_path / "t.jsonl", GOOD, longer), block_tokens=16, namespace="a")
    assert (len(first.keys), len(second.keys)) == (1100 // 16, 1600 // 16)
    shared = sum(one == two for one, two in zip(first.keys, second.keys, strict=False))
    assert first.keys[:shared] == second.keys[:shared]
    assert shared == 2 * 512 // 16, "what lies in the block in which they part is not shared"


def test_answers_continue_the_chain(tmp_path):
    path = written(tmp_path / "t.jsonl", {**GOOD, "output_length": 1000, "answer_hash_ids": [9, 10]})
    for block_tokens in (512, 64):
        (arrival,) = read_mooncake(path, block_tokens=block_tokens)
        assert len(arrival.keys) == 1100 // block_tokens
        assert len(arrival.keys + arrival.answer_keys) == 2048 // block_tokens
    assert next(read_mooncake(path)).answer_keys == (9, 10)


def test_label_and_namespace_keep_two_traces_apart(tmp_path):
    path = written(tmp_path / "t.jsonl", {**GOOD, "session_id": "s"})
    one, two = (next(read_mooncake(path, namespace=name, label=name)) for name in ("a.", "b."))
    assert not set(one.keys) & set(two.keys)
    assert (one.id, two.id, one.session, two.session) == ("a.r0", "b.r0", "a.s", "b.s")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ({"timestamp": 1}, "input_length"),
        ({**GOOD, "input_length": 0}, "input_length: expected int >= 1, got 0"),
        ({**GOOD, "output_length": "7"}, "output_length: expected int, got str, got '7'"),
        ({**GOOD, "timestamp": -1}, "timestamp: expected float >= 0.0, got -1"),
        ({**GOOD, "hash_ids": [4, "x", 6]}, "hash_ids"),
        ({**GOOD, "hash_ids": [4]}, "hash_ids: expected 2 full blocks of 512 tokens for input_length 1100"),
        ({**GOOD, "hash_ids": [4, 5, 6, 7]}, "and at most one more, got 4"),
        ({**GOOD, "block_size": 64}, "expected 17 full blocks of 64 tokens"),
        ({**GOOD, "timestamp": 1499}, "timestamp: expected at least 1.5 s, that of the line before, got 1.499 s"),
    ],
)
def test_a_bad_line_is_named_or_counted(tmp_path, bad, problem):
    path = written(tmp_path / "t.jsonl", GOOD, bad, GOOD)
    with pytest.raises(ConfigError) as error:
        list(read_mooncake(path))
    assert str(error.value).startswith(f"{path}:2: ")
    assert problem in str(error.value)
    counts = ReadCounts()
    assert len(list(read_mooncake(path, strict=False, counts=counts))) == 2
    assert (counts.lines, counts.bad) == (3, 1)
    assert counts.first_bad == str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl: cannot be read: No such file"):
        list(read_mooncake(tmp_path / "nowhere.jsonl"))
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(b"{}" * 1000)[:-12])
    with pytest.raises(ConfigError, match=r"torn\.jsonl\.gz: cannot be read"):
        list(read_mooncake(torn))
    plain = written(tmp_path / "plain.gz", GOOD)
    with pytest.raises(ConfigError, match="cannot be read: Not a gzipped file"):
        list(read_mooncake(plain))


def test_blocks_that_do_not_fit_each_other(tmp_path):
    with pytest.raises(ConfigError, match="block_tokens: 48 does not divide the trace's blocks of 512 tokens"):
        list(read_mooncake(written(tmp_path / "t.jsonl", GOOD), block_tokens=48, strict=False))


def test_the_excerpt_is_read():
    arrivals = list(read_mooncake(EXCERPT))
    assert len(arrivals) == 1750
    assert {arrival.keys[0] for arrival in arrivals} == {0}
    assert 590 < arrivals[-1].at_s < 600


@pytest.mark.parametrize(
    ("name", "block", "requests"), [("conversation_trace", 512, 12_031), ("agent_sessions", 64, 1619)]
)
def test_whole_traces_are_read(name, block, requests):
    path = TRACES / f"{name}.jsonl"
    if not path.exists():
        pytest.skip("the whole trace is not here; the excerpt in examples/ is")
    arrivals = list(read_mooncake(path, trace_block_tokens=block))
    assert len(arrivals) == requests
    assert all(len(arrival.keys) == arrival.prompt_tokens // block for arrival in arrivals)
    assert [arrival.at_s for arrival in arrivals] == sorted(arrival.at_s for arrival in arrivals)


def test_reading_keeps_nothing(tmp_path):
    path = tmp_path / "t.jsonl"
    with path.open("w") as file:
        file.writelines(
            json.dumps({**GOOD, "timestamp": n, "hash_ids": [3 * n, 3 * n + 1, 3 * n + 2]}) + "\n"
            for n in range(10_000)
        )
    tracemalloc.start()
    count = sum(1 for _ in read_mooncake(path, kept_max=100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 300_000, "ten thousand arrivals take more than 5 MB"


AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "2023-11-16 18:17:03.9799600,4808,10",
    "2023-11-16 18:17:04.0319600,110,27",
)


def test_azure(tmp_path):
    one, two = read_azure(written(tmp_path / "a.csv", *AZURE), block_tokens=32)
    assert (one.at_s, one.prompt_tokens, one.output_tokens) == (0.0, 4808, 10)
    assert two.at_s == pytest.approx(0.052)
    assert (len(one.keys), len(two.keys)) == (150, 3)
    assert not set(one.keys) & set(two.keys)
    later = written(tmp_path / "b.csv", AZURE[0], "2024-05-10 23:59:59+00:00,1,1", "2024-05-11 02:00:01+02:00,1,1")
    assert [arrival.at_s for arrival in read_azure(later)] == [0.0, 2.0], "2024 has offsets from UTC"


def test_burstgpt(tmp_path):
    rows = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log",
        "19440161.0,,2,ChatGPT,36,0,65,API log",
        "19440192.0,,8,GPT-4,1779,123,1902,API log",
    )
    counts = ReadCounts()
    one, two = read_burstgpt(written(tmp_path / "b.csv", *rows), counts=counts, label="x.")
    assert (one.at_s, two.at_s, one.session, two.session) == (0.0, 82.0, "x.1722ac82", None)
    assert (counts.failed, counts.bad) == (1, 0), "an answer of 0 tokens is a failure"
    old = written(
        tmp_path / "old.csv", "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", "5,GPT-4,4,5,9,x"
    )
    assert [arrival.prompt_tokens for arrival in read_burstgpt(old)] == [4]


@pytest.mark.parametrize(
    ("rows", "line", "problem"),
    [
        ((), 0, "expected the columns TIMESTAMP, ContextTokens, GeneratedTokens in the first line, got nothing"),
        (("a,b",), 1, "got a, b"),
        ((AZURE[0], "yesterday,1,1"), 2, "TIMESTAMP: expected a time, got 'yesterday'"),
        ((AZURE[0], "2024-05-10,0,1"), 2, "ContextTokens: expected a whole number of at least 1, got '0'"),
        ((AZURE[0], "2024-05-10,1,x"), 2, "GeneratedTokens: expected a whole number of at least 1, got 'x'"),
        ((AZURE[0], "2024-05-10,1"), 2, "expected 3 columns, got 2"),
        ((*AZURE, "2023-11-16 18:17:03,1,1"), 4, "timestamp: expected at least 0.05"),
    ],
)
def test_bad_tables(tmp_path, rows, line, problem):
    path = written(tmp_path / "a.csv", *rows)
    with pytest.raises(ConfigError) as error:
        list(read_azure(path))
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert problem in str(error.value)


def test_qwen(tmp_path):
    def chat(number, parent, at_s, ids, tokens):
        return {
            "chat_id": number, "parent_chat_id": parent, "timestamp": at_s, "input_length": tokens, "output_length": 5,
            "type": "text", "turn": 1, "hash_ids": ids,
        }  # fmt: skip

    path = written(
        tmp_path / "q.jsonl",
        chat(159, -1, 61.114, [1, 2, 3], 40),
        chat(160, -1, 62, [9, 2, 3], 48),
        chat(161, 159, 63, [1, 2, 4], 48),
        chat(162, 161, 64, [1, 2, 4, 5], 64),
    )
    first, other, second, third = read_qwen(path)
    assert [a.session for a in (first, other, second, third)] == ["159", "160", "159", "159"]
    assert len(first.keys) == 2
    assert first.keys == second.keys[:2]
    assert second.keys == third.keys[:3]
    assert not set(first.keys) & set(other.keys), "the same block behind another prefix is another block"


def test_readers_are_lazy(tmp_path):
    path = written(tmp_path / "t.jsonl", GOOD, GOOD, "{")
    assert len(list(islice(read_mooncake(path), 2))) == 2
