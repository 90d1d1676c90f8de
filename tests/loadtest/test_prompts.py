"""Texts, conversations and traces: equal names give equal prompts, whoever makes them."""

import json
import os
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.loadtest.prompts import Texts
from homing.loadtest.sessions import Session, SessionShape
from homing.loadtest.trace import TraceSettings, read_trace
from homing.router.core.errors import ConfigError


@given(st.integers(), st.text(max_size=20), st.integers(1, 500), st.floats(0.1, 8))
def test_a_text_is_as_long_as_its_tokens(seed, name, tokens, chars_per_token):
    text = Texts(seed, chars_per_token=chars_per_token).text(name, tokens)
    assert len(text) == max(1, round(tokens * chars_per_token))
    assert text == Texts(seed, chars_per_token=chars_per_token).text(name, tokens)


def test_texts_are_the_same_in_another_process():
    code = "from homing.loadtest.prompts import Texts; print(Texts(3).text('system-0', 50), end='')"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == Texts(3).text("system-0", 50)


def test_other_seeds_and_names_give_other_texts():
    texts = {Texts(seed).text(name, 50) for seed in range(5) for name in "abc"}
    assert len(texts) == 15


@given(st.integers(1, 5), st.integers(0, 9), st.lists(st.text(max_size=10), min_size=5, max_size=5))
def test_each_turn_begins_with_all_that_was_said(turns, number, answers):
    texts = Texts(1)
    shape = SessionShape(system_prompts=3, system_tokens=5, turns=turns, turn_tokens=3, output_tokens=2)
    session, said = Session(texts, shape, number), ()
    for turn in range(turns):
        assert not session.is_over
        ask = session.next_ask()
        assert ask.messages[: len(said)] == said
        assert ask.messages[0] == {"role": "system", "content": texts.text(f"system-{number % 3}", 5)}
        assert ask.messages[-1]["role"] == "user"
        assert ask.name == ("later turn" if turn else "first turn")
        session.answered(ask, answers[turn])
        said = (*ask.messages, {"role": "assistant", "content": answers[turn]})
    assert session.is_over


def trace_of(folder, rows):
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=5)


@given(st.lists(prompts, min_size=2, max_size=6), st.integers(0, 15))
def test_equal_leading_blocks_are_equal_leading_texts(tmp_path_factory, chains, rest):
    """And the first other block is where two prompts part."""
    names = [[hash(tuple(chain[: end + 1])) % 10**9 for end in range(len(chain))] for chain in chains]
    rows = [
        {
            "timestamp": 500 + 1000 * at,
            "input_length": 16 * len(ids) + rest,
            "output_length": 3 + at,
            "hash_ids": ids,
            "block_size": 16,
        }
        for at, ids in enumerate(names)
    ]
    path = trace_of(tmp_path_factory.mktemp("trace"), rows)
    texts, settings = Texts(1, chars_per_token=4), TraceSettings(path=path, time_scale=2.0)
    timed = list(read_trace(settings, texts, Random(1)))
    assert [one.at_s for one in timed] == [2.0 * at for at in range(len(rows))]
    assert [one.ask.output_tokens for one in timed] == [3 + at for at in range(len(rows))]
    contents = [one.ask.messages[-1]["content"] for one in timed]
    block = 16 * 4 + 1
    for ids, text in zip(names, contents, strict=True):
        assert abs(len(text) - 4 * (16 * len(ids) + rest)) <= len(ids)
        for other_ids, other in zip(names, contents, strict=True):
            common = next((n for n, (a, b) in enumerate(zip(ids, other_ids, strict=False)) if a != b), None)
            shared = min(len(ids), len(other_ids)) if common is None else common
            begin = max(0, shared * block - 1)
            assert text[:begin] == other[:begin]
            if common is not None:
                assert text[: (shared + 1) * block - 1] != other[: (shared + 1) * block - 1]


def test_a_part_of_a_trace_at_a_part_of_its_length(tmp_path):
    rows = [{"timestamp": 0, "input_length": 1024, "output_length": 100, "hash_ids": [1, 2]}] * 5
    settings = TraceSettings(path=trace_of(tmp_path, rows), length_scale=0.1, requests_max=2)
    asks = [timed.ask for timed in read_trace(settings, Texts(1), Random(1))]
    assert [ask.output_tokens for ask in asks] == [10, 10]
    assert all(len(ask.messages[-1]["content"]) == 2 * 51 * 4 + 1 for ask in asks)


def test_a_bad_trace_is_told_by_its_line(tmp_path):
    path = trace_of(tmp_path, [{"timestamp": 0, "input_length": 10, "output_length": 0}])
    with pytest.raises(ConfigError, match=r"trace.jsonl:1: .*output_length"):
        list(read_trace(TraceSettings(path=path), Texts(1), Random(1)))
