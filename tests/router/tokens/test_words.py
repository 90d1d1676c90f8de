"""Words put together are the whole: for every pattern that is known, and for nothing else are words looked up."""

import json
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from homing.router.core.blocks import pack_tokens
from homing.router.tokens import words
from homing.router.tokens.incremental import IncrementalTokenizer
from homing.router.tokens.patterns import ascii_pattern, word_pattern
from homing.router.tokens.words import WORD_CHARS_MAX, WordTokens, words_of

from .kinds import MAKERS, WORDY, make, text_of

ASCII = "".join(map(chr, range(128)))
FRAGMENTS = [
    "<|im_start|>", "<|im_end|>", "<|im_", "|>", "<s>", "</s>", "<", "  ", "\n", "\n\n", " \n", "\n ", "\r\n", "\t",
    "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x00", "\x7f", "it's", "IT'S", "we'll", "'s", "'", "''ve", "a",
    "Ab", "aB", "fox", " fox", "7", " 7", "12", "1234", " 123456", "!", " !", "?!", "//", "/\n", "!\n/", "_x", "-a",
    " -a", "\na", "a\n",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(ASCII, max_size=6), max_size=30).map("".join)


@cache
def shared(kind: str) -> WordTokens:
    made = words_of(make(kind), json.loads(text_of(kind)))
    assert made is not None
    return made


@cache
def plain(kind: str):
    return make(kind)


def whole(kind: str, text: str) -> bytes:
    return pack_tokens(plain(kind).encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", sorted(WORDY))
@given(text=texts)
@example(text=" 1  2 \n3  a")
@example(text="a \x1c\x1d b")
@settings(max_examples=300, deadline=None)
def test_words_put_together_are_the_whole(kind: str, text: str) -> None:
    assert shared(kind).encode(text, new_max=len(text)) == whole(kind, text)
    assert shared(kind).encode(text) == whole(kind, text), "from memory"
    shared(kind).check()


@pytest.mark.parametrize("kind", sorted(WORDY))
@given(text=texts)
@settings(max_examples=300, deadline=None)
def test_words_are_those_of_the_pre_tokenizer(kind: str, text: str) -> None:
    """A small vocabulary seldom shows where a text is cut wrongly."""
    pattern = word_pattern(json.loads(text_of(kind)))
    assert pattern is not None
    found = ascii_pattern(pattern).findall(text)
    assert "".join(found) == text
    assert found == [text[begin:end] for _, (begin, end) in plain(kind).pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("kind", sorted(set(MAKERS) - WORDY))
def test_other_kinds_are_left_to_the_tokenizer(kind: str) -> None:
    assert words_of(make(kind), json.loads(text_of(kind))) is None


def test_text_beyond_ascii_is_left_to_the_tokenizer() -> None:
    assert shared("gpt2").encode("na\u00efve") is None
    assert IncrementalTokenizer(make("gpt2")).encode_now("na\u00efve") == whole("gpt2", "na\u00efve")


def test_a_description_that_is_not_true_is_found_out() -> None:
    """As if the library read it in another way: speed is lost, not exactness."""
    spec = json.loads(text_of("gpt2"))
    spec["pre_tokenizer"] = json.loads(text_of("llama3"))["pre_tokenizer"]
    assert words_of(make("gpt2"), spec) is None


@pytest.mark.parametrize("flag", ["normalized", "lstrip", "rstrip", "single_word"])
def test_added_tokens_that_look_around_are_left_to_the_tokenizer(flag: str) -> None:
    spec = json.loads(text_of("gpt2"))
    spec["added_tokens"][0][flag] = True
    assert words_of(make("gpt2"), spec) is None


def test_a_text_of_new_words_is_left_to_the_tokenizer_and_learned_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_SAMPLE", "a")
    one = words_of(make("gpt2"), json.loads(text_of("gpt2")))
    assert one is not None
    text = " ".join("abcdefghijklm"[n:] for n in range(12))
    tries = []
    while not tries or tries[-1] is None:
        tries.append(one.encode(text, new_max=5))
    assert tries == [None, None, whole("gpt2", text)]


def test_words_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "WORDS_MAX", 40)
    monkeypatch.setattr(words, "_SAMPLE", "a")
    one = words_of(make("llama3"), json.loads(text_of("llama3")))
    assert one is not None
    for number in range(200):
        text = f"steady {number} {'x' * (WORD_CHARS_MAX + number)}"
        assert one.encode(text) == whole("llama3", text)
        assert "steady" in {**one._young, **one._old}, "what is used goes over to the next generation"
        one.check()
