"""Readers without a tokenizer: the bytes of the text, and the engine's own word for it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.blocks import block_keys, pack_tokens
from homing.router.engines.types import EngineError
from homing.router.tokens.engine import EngineReader
from homing.router.tokens.text import MEDIA_TOKENS, TextReader
from homing.router.tokens.types import PromptError, TokenSource

CHAT = "/v1/chat/completions"
messages = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), st.text()
    ),
    min_size=1,
)


def read(body, path=CHAT):
    return TextReader().read_now(path, body)


@given(told=messages, more=messages)
def test_a_next_turn_begins_with_the_turn_before(told, more):
    before, after = read({"messages": told}), read({"messages": told + more})
    assert before.source is TokenSource.TEXT
    assert len(before.packed) % 4 == 0
    if len(before.packed) > 4:
        assert after.packed.startswith(before.packed)
        assert block_keys(after.packed, 2)[: before.tokens // 2] == block_keys(before.packed, 2)


@given(st.lists(messages, min_size=2, max_size=2, unique_by=repr))
def test_other_conversations_have_other_bytes(pair):
    """But for the three bytes at the end that may be left out."""
    first, second = (read({"messages": [*told, {"role": "user", "content": "...."}]}).packed for told in pair)
    assert first != second


def test_about_four_letters_are_a_token():
    assert read({"prompt": "a" * 400}, "/v1/completions").tokens == 100
    assert read({"prompt": ""}, "/v1/completions").tokens == 1
    exact = read({"prompt": [5, 6]}, "/v1/completions")
    assert (exact.packed, exact.source) == (pack_tokens([5, 6]), TokenSource.LOCAL)


def test_pictures_count_by_what_they_show():
    def with_picture(url):
        return read({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]})

    one, other = with_picture("data:" + "a" * 90_000), with_picture("data:" + "b" * 90_000)
    assert one.packed != other.packed
    assert MEDIA_TOKENS <= one.tokens <= MEDIA_TOKENS + 5


def test_every_api_is_read():
    plain = read({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]})
    assert read({"system": "s", "messages": [{"role": "user", "content": "q"}]}, "/v1/messages") == plain
    assert read({"instructions": "s", "input": "q"}, "/v1/responses") == plain
    assert read({"input": [{"type": "function_call", "name": "f"}]}, "/v1/responses").tokens > 3
    assert read({"messages": [{"role": "user", "content": "q"}], "tools": [{"a": 1}]}).packed != plain.packed
    assert read({"messages": [{"role": "user", "content": "\ud800q"}]}).tokens > 1
    for body in ({}, {"messages": []}, {"messages": 3}):
        with pytest.raises(PromptError, match="messages"):
            read(body)


class Asked:
    """How an engine answers, and how often it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.times = 0

    async def __call__(self, path, body):
        self.times += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == "never":
            await asyncio.sleep(60)
        return self.answer


BODY = {"messages": [{"role": "user", "content": "q"}]}


def test_an_engine_is_asked_once_for_one_prompt():
    async def scenario():
        asked = Asked((1, 2, 3))
        reader = EngineReader(asked)
        first = await reader.read(CHAT, {**BODY, "temperature": 1, "max_tokens": 5})
        assert (first.packed, first.source) == (pack_tokens([1, 2, 3]), TokenSource.ENGINE)
        assert await reader.read(CHAT, {**BODY, "temperature": 0, "stream": True}) == first
        assert asked.times == 1
        await reader.read(CHAT, {**BODY, "chat_template_kwargs": {"enable_thinking": False}})
        await reader.read("/v1/messages", BODY)
        assert asked.times == 3
        assert 0 < reader.used_bytes < 4000

    asyncio.run(scenario())


@pytest.mark.parametrize("answer", ["never", EngineError("500")])
def test_an_engine_that_fails_is_left_alone_for_a_while(answer):
    async def scenario():
        asked = Asked(answer)
        reader = EngineReader(asked, timeout_s=0.02, pause_s=0.05)
        for _ in range(3):
            assert (await reader.read(CHAT, BODY)).source is TokenSource.TEXT
        assert asked.times == 1
        await asyncio.sleep(0.06)
        asked.answer = (7,)
        assert (await reader.read(CHAT, BODY)).packed == pack_tokens([7])

    asyncio.run(scenario())


def test_an_engine_that_has_no_way_to_say_is_asked_again():
    async def scenario():
        asked = Asked(None)
        reader = EngineReader(asked)
        for _ in range(2):
            assert await reader.read(CHAT, BODY) == TextReader().read_now(CHAT, BODY)
        assert asked.times == 2

    asyncio.run(scenario())
