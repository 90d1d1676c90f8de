"""Text to tokens and back: byte tokenizer everywhere, byte-level BPE on one trained here."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, trainers

from homing.workers.model.config import UnsupportedModelError
from homing.workers.model.tiny import TINY_CONFIG
from homing.workers.model.tokenizer import ByteTokenizer, HfTokenizer, StreamDecoder

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]
CORPUS = ["the cache of the prefix is the prefix of the cache", "déjà vu, 你好 你好 世界", "🙂🙂🙂 2025"]


def trained(decoder=None):
    """A small byte-level BPE with merges over ASCII and over parts of longer characters."""
    bpe = Bpe(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoder or decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS * 3, trainer)
    return bpe


BPE = trained()
TOKENIZERS = {
    "bytes": ByteTokenizer(),
    "bpe": HfTokenizer(BPE.to_str(), eos_ids=(1,), chat_template=CHATML),
}
texts = st.text() | st.lists(st.sampled_from([*CORPUS, *SPECIAL, "🙂", "é", " "])).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
def test_decoding_what_was_encoded_gives_the_text(name, text):
    tokenizer = TOKENIZERS[name]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_a_stream_gives_the_text_of_a_full_decode(name, data):
    """Any ids, so broken UTF-8 too, in parts of any size."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_tokens - 1), max_size=40))
    skip = data.draw(st.booleans())
    decoder = StreamDecoder(tokenizer, skip_special=skip)
    parts, rest = [], ids
    while rest:
        take = data.draw(st.integers(1, len(rest)))
        parts.append(decoder.push(rest[:take]))
        rest = rest[take:]
    assert "".join(parts) + decoder.finish() == tokenizer.decode(ids, skip_special=skip)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
def test_a_stream_of_whole_characters_never_shows_a_broken_one(name, text):
    tokenizer = TOKENIZERS[name]
    decoder = StreamDecoder(tokenizer, skip_special=False)
    parts = [decoder.push([token]) for token in tokenizer.encode(text)]
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text
    assert decoder.finish() == ""


@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 319), max_size=30))
def test_decode_agrees_with_the_tokenizers_library(ids):
    ids = [token for token in ids if token < BPE.get_vocab_size()]
    for skip in (False, True):
        assert TOKENIZERS["bpe"].decode(ids, skip_special=skip) == BPE.decode(ids, skip_special_tokens=skip)


def test_special_tokens_are_single_ids_and_can_be_left_out_of_text():
    tokenizer = TOKENIZERS["bpe"]
    ids = tokenizer.encode("the<|im_end|>")
    assert ids[-1] == tokenizer.eos_ids[0] == 1
    assert tokenizer.decode(ids, skip_special=True) == "the"
    assert StreamDecoder(tokenizer).push(ids) == "the"


def test_chatml_opens_the_answer_and_brings_the_default_system_message():
    messages = [{"role": "user", "content": "Hi"}]
    assert TOKENIZERS["bpe"].render_chat(messages) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZERS["bpe"].chat(messages)[0] == 0
    first = (
        "{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nBe kind<|im_end|>\\n' }}{% endif %}"
    )
    template = CHATML.replace("{{'<|im_start|>' +", first + "{{'<|im_start|>' +", 1)
    tokenizer = HfTokenizer(BPE.to_str(), chat_template=template)
    rendered = tokenizer.render_chat(messages)
    assert rendered.startswith("<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\n")
    own = [{"role": "system", "content": "Be brief"}, *messages]
    assert "Be kind" not in tokenizer.render_chat(own)


@pytest.mark.parametrize("template", [None, CHATML + "{{ bos_token }}", "{{ messages }}"])
def test_an_unknown_chat_template_is_refused_when_it_is_needed(template):
    tokenizer = HfTokenizer(BPE.to_str(), chat_template=template)
    assert tokenizer.encode("text still works")
    with pytest.raises(UnsupportedModelError, match="completions API"):
        tokenizer.chat([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one"),
        ([{"role": "robot", "content": "x"}], "'robot'"),
        ([{"role": "user", "content": None}], "must be a text"),
    ],
)
def test_messages_that_are_no_chat_are_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        ByteTokenizer().chat(messages)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("token", [-1, 100_000])
def test_an_id_outside_the_vocabulary_is_refused(name, token):
    with pytest.raises(ValueError, match="outside the vocabulary"):
        TOKENIZERS[name].decode([token])


def test_a_tokenizer_that_is_not_byte_level_is_refused():
    with pytest.raises(UnsupportedModelError, match="ByteLevel"):
        HfTokenizer(trained(decoders.Metaspace()).to_str())


def test_the_template_may_stand_in_the_config_or_in_a_file_of_its_own(tmp_path):
    (tmp_path / "tokenizer.json").write_text(BPE.to_str())
    hi = [{"role": "user", "content": "Hi"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    from_config = HfTokenizer.from_directory(tmp_path).chat(hi)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert HfTokenizer.from_directory(tmp_path).chat(hi) == from_config == TOKENIZERS["bpe"].chat(hi)


def test_a_tokenizer_loads_without_torch(tmp_path):
    """The router tokenizes on machines without torch."""
    (tmp_path / "tokenizer.json").write_text(BPE.to_str())
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG.to_hf()))
    code = (
        "import sys; from homing.workers.model.sources import load_tokenizer as load; "
        f"ok = load({str(tmp_path)!r}).eos_ids == load('tiny').eos_ids == (257,); "
        "sys.exit(not ok or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
