"""Parts put together are the whole: for many kinds of tokenizers, texts and cuts; and what cannot be cut is refused."""

import asyncio
import json
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from homing.router.core.blocks import pack_tokens
from homing.router.tokens import incremental
from homing.router.tokens.incremental import IncrementalTokenizer
from homing.router.tokens.patterns import LINE_PATTERNS
from homing.router.tokens.safety import cut_rules

from .kinds import LINED, LLAMA3, MAKERS, O200K, QWEN2, SPECIAL, TEKKEN, make, text_of

FRAGMENTS = [
    *SPECIAL, "<|im", "<|im_", "|>", "|><", "_end|>", "<|im_end|><|im_end|>", "<left>", "<right>", "<", ">",
    "\n", "\n\n", "\r\n", "\r", " ", "  ", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "▁",
    "a", "b1", "7", "fox", "Fox", "it's", "'s", "/", "//", "!", "?!", "。", "中", "é", "e\u0301", "\u0301", "\u200d",
    "the quick brown", "\nx", "x\ny", "1\n2", "!\n/", "\n/", " \nz", "\n ", "Σ", "ß", "\U0001f600", "\x00",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=30).map("".join)
SHARED = {}


@pytest.fixture(scope="module", autouse=True)
def _cut_everywhere():
    """Parts and groups of them as small as can be, so that short texts have many cuts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(incremental, "PART_BYTES_MIN", 1)
        patch.setattr(incremental, "LINE_PART_BYTES_MIN", 1)
        patch.setattr(incremental, "GROUP_BYTES_MIN", 8)
        yield


def pair(kind):
    """An incremental tokenizer whose memory lasts for the whole module, and the plain one."""
    if kind not in SHARED:
        SHARED[kind] = IncrementalTokenizer(make(kind), ["<|im_end|>"], cache_bytes=1 << 20), make(kind)
    return SHARED[kind]


def whole(tokenizer, text):
    return pack_tokens(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", sorted(MAKERS))
@given(text=texts)
@example(text="a\nb<|im_end|>\nc<|im_end|> d\n\ne")
@example(text=" a<|im_end|> a<|im_end|>a")
@settings(max_examples=150, deadline=None)
def test_parts_put_together_are_the_whole(kind, text):
    incremental_one, plain = pair(kind)
    assert incremental_one.encode_now(text) == whole(plain, text)
    assert incremental_one.encode_now(text) == whole(plain, text), "from memory"
    incremental_one.check()


@pytest.mark.parametrize("kind", ["smollm", "llama3", "metaspace first", "awkward"])
@given(begin=texts, more=texts)
@settings(max_examples=60, deadline=None)
def test_texts_that_begin_alike_are_cut_alike(kind, begin, more):
    incremental_one, _ = pair(kind)
    parts = incremental_one.split(begin)
    assert b"".join(parts) == begin.encode()
    assert incremental_one.split(begin + more)[: len(parts) - 1] == parts[:-1]


@pytest.mark.parametrize("kind", sorted(LINED))
@given(text=texts.filter(lambda text: "\n" in text))
@settings(max_examples=60, deadline=None)
def test_lines_are_cut_for_the_patterns_that_allow_it(kind, text):
    rules = cut_rules(json.loads(text_of(kind)), [])
    assert rules.lines
    assert make_once(kind).encode_now(text) == whole(pair(kind)[1], text)


@pytest.mark.parametrize("kind", sorted(LINED))
@given(text=texts)
@example(text="!\n/a")
@settings(max_examples=100, deadline=None)
def test_a_cut_after_a_line_feed_is_one_that_the_pre_tokenizer_makes_too(kind, text):
    """Words of a small vocabulary seldom show it: these are the pieces that words are sought in."""
    plain = pair(kind)[1]

    def pieces(part):
        normal = plain.normalizer.normalize_str(part) if plain.normalizer else part
        return [piece for piece, _ in plain.pre_tokenizer.pre_tokenize_str(normal)]

    parts = [part.decode() for part in make_once(kind).split(text)]
    assert [piece for part in parts for piece in pieces(part)] == pieces(text)


@cache
def make_once(kind):
    """One that cuts after line feeds alone."""
    return IncrementalTokenizer(make(kind))


@pytest.mark.parametrize("kind", ["smollm", "metaspace first", "wordpiece"])
def test_only_what_is_new_is_encoded(kind):
    one = IncrementalTokenizer(make(kind), ["<|im_end|>"])
    known, text = "a<|im_end|>b<|im_end|>", "a<|im_end|>b<|im_end|>c<|im_end|>"

    def new(text):
        parts, _, missing, _ = one._look_up(text)
        return [parts[index] for index in missing]

    assert new(known) == [b"a<|im_end|>", b"b<|im_end|>"]
    one.encode_now(known)
    assert new(text) == [b"c<|im_end|>"]
    assert new("b<|im_end|>") == ([b"b<|im_end|>"] if kind == "metaspace first" else []), "the first part is another"


def test_a_group_that_is_known_is_looked_up_at_once():
    one = IncrementalTokenizer(make("smollm"), ["<|im_end|>"])
    first, second, last = "a<|im_end|>b<|im_end|>", "c<|im_end|>d<|im_end|>", "e"
    assert one._look_up(first + second + last)[0] == one.split(first + second + last), "nothing is known"
    one.encode_now(first + second + last)
    parts, found, missing, groups = one._look_up(first + second + last)
    assert len(parts) < len(one.split(first + second + last)) and not missing and not groups
    assert b"".join(found) == whole(pair("smollm")[1], first + second + last)
    one.check()


def test_cuts_are_made_at_all():
    one, _ = pair("llama3")
    assert one.split("a.\nb\n\nc<|im_end|>d") == [b"a.\n", b"b\n\nc<|im_end|>", b"d"]
    assert not one.refusal
    first, _ = pair("metaspace first")
    assert first.split("a\nb<|im_end|>c") == [b"a\nb<|im_end|>", b"c"]


def test_the_patterns_are_those_of_the_models():
    assert {LLAMA3, QWEN2, O200K, TEKKEN} == LINE_PATTERNS
    assert {kind for kind in MAKERS if cut_rules(json.loads(text_of(kind)), []).lines} == LINED


@pytest.mark.parametrize("kind", sorted(set(MAKERS) - LINED))
def test_without_a_cut_texts_are_whole(kind):
    one = IncrementalTokenizer(make(kind), ["no such token"])
    assert "no added token serves" in one.refusal
    text = "a.\nb<|im_end|>c"
    assert one.split(text) == [text.encode()]
    assert one.encode_now(text) == whole(pair(kind)[1], text)


def spec(**changes):
    return {**json.loads(text_of("gpt2")), **changes}


def added(content, **flags):
    return {"id": 999, "content": content, "special": True, "normalized": False, **flags}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"type": "BPE", "dropout": 0.1}}, "at random"),
        ({"model": {"type": "Neural"}}, "Neural"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Rhyme"}]}}, "Rhyme"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Rhyme"}]}}, "Rhyme"),
        ({"added_tokens": [added("<|im_end|>"), added("word", single_word=True)]}, "single word"),
    ],
)
def test_what_is_not_known_to_be_safe_is_refused(changes, says):
    rules = cut_rules(spec(**changes), ["<|im_end|>"])
    assert says in rules.refusal
    assert not rules.token
    assert not rules.lines


@pytest.mark.parametrize(
    "tokens",
    [
        [added("<|im_end|>", rstrip=True)],
        [added("<|im_end|>", normalized=True)],
        [added(" <|im_end|>")],
        [added("<|im_end|>"), added("<|im_end|>x")],
        [added("<|im_end|>"), added("x<|im_end|>")],
        [added("<|im_end|>"), added("x<|im")],
        [added("<|im_end|>"), added("end|><")],
        [added("aba")],
    ],
    ids=["takes space", "normalised", "begins with space", "prefix of another", "inside another", "hidden by another",
         "its own begin at its end", "overlaps itself"],
)  # fmt: skip
def test_a_token_that_may_be_missed_is_no_cut(tokens):
    wanted = tokens[0]["content"]
    assert cut_rules(spec(added_tokens=tokens), [wanted]).token == ""


def test_the_first_token_that_serves_is_taken():
    tokens = [added("<a>", rstrip=True), added("<b>"), added("<c>")]
    assert cut_rules(spec(added_tokens=tokens), ["none", "<a>", "<c>", "<b>"]).token == "<c>"


def test_long_texts_are_encoded_aside_and_memory_is_bounded():
    one = IncrementalTokenizer(make("smollm"), ["<|im_end|>"], cache_bytes=100_000)
    plain = pair("smollm")[1]
    text = "".join(f"<|im_start|>user\nquestion {n}: {'why ' * n}\nso<|im_end|>\n" for n in range(150))
    assert len(text) > incremental.INLINE_BYTES_MAX
    assert asyncio.run(one.encode(text)) == whole(plain, text)
    assert 50_000 < one.used_bytes <= 100_000
    one.check()
    assert asyncio.run(one.encode(text + "more")) == whole(plain, text + "more")


def test_lone_surrogates_are_no_text():
    with pytest.raises(UnicodeEncodeError):
        pair("gpt2")[0].encode_now("a\ud800")
