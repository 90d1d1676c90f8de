"""The demo's real model: its answers, its tokenizer, and the cached-prefix path at real sizes."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from homing.workers.engine.step import SequenceStep, StepPlan
from homing.workers.model.sampling import Sampling, sample
from homing.workers.model.tokenizer import StreamDecoder

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def one(tokens, start, table, sample=True):
    step = SequenceStep(request_id="r", tokens=tuple(tokens), start=start, block_table=tuple(table), sample=sample)
    return StepPlan(steps=(step,))


def generate(loaded, prompt, tokens_max):
    kv = loaded.kv_tensor(blocks=16, block_tokens=16)
    table = Random(2).sample(range(16), 16)
    decoder, text, position, new = StreamDecoder(loaded.tokenizer), "", 0, list(prompt)
    for _ in range(tokens_max):
        logits = loaded.model.forward(one(new, position, table), kv)
        position += len(new)
        new = [sample(logits[0], Sampling(), position)]
        if new[0] in loaded.config.eos_ids:
            return text + decoder.finish()
        text += decoder.push(new)
    return text


def test_it_knows_the_capital_of_france(smollm2):
    """Wrong weights, an unpermuted head or a wrong template all show here."""
    assert generate(smollm2, smollm2.tokenizer.chat(QUESTION), 20) == "The capital of France is Paris."


def test_the_chat_prompt_is_what_the_models_template_renders(smollm2):
    assert smollm2.tokenizer.render_chat(QUESTION) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = smollm2.tokenizer.chat(QUESTION)
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)


def test_a_split_prefill_equals_a_whole_one(smollm2):
    random = Random(5)
    prompt = [random.randrange(17, 49152) for _ in range(300)]
    table = random.sample(range(24), 24)
    whole = smollm2.model.forward(one(prompt, 0, table), smollm2.kv_tensor(blocks=24, block_tokens=16))
    kv = smollm2.kv_tensor(blocks=24, block_tokens=16)
    for first, last in ((0, 128), (128, 129), (129, 299)):
        smollm2.model.forward(one(prompt[first:last], first, table, sample=False), kv)
    split = smollm2.model.forward(one(prompt[299:], 299, table), kv)
    assert (whole - split).abs().max() < 1e-3
    assert int(whole.argmax()) == int(split.argmax())


# SmolLM2's vocabulary lacks a few bytes that no training text had: six control characters and the first
# bytes of planes 4 to 11, where Unicode has no characters. Its tokenizer drops them.
KNOWN = st.characters(codec="utf-8", exclude_characters="\x04\x06\x13\x14\x16\x1d", max_codepoint=0x3FFFF)


def test_any_text_survives_encoding(smollm2):
    @settings(max_examples=200, deadline=None)
    @given(text=st.text(KNOWN, max_size=60))
    def check(text):
        tokenizer = smollm2.tokenizer
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        decoder = StreamDecoder(tokenizer)
        assert "".join(decoder.push([token]) for token in ids) + decoder.finish() == text

    check()


def test_digits_are_tokens_of_their_own(smollm2):
    """The pre-tokenizer is not in the GGUF file, only its name is."""
    assert len(smollm2.tokenizer.encode("1234567")) == 7
