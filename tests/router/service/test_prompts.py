"""What senders give, read or refused: every refusal names the field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.protos import common_pb2, router_pb2
from homing.router.core.blocks import block_keys, group_seed, pack_tokens
from homing.router.core.errors import RequestError
from homing.router.core.types import ModelName, ModelProfile
from homing.router.service.prompts import OUTPUT_TOKENS_DEFAULT, PRIORITY_MAX, Intake

PROFILE = ModelProfile(
    name=ModelName("m"), block_tokens=4, bytes_per_token=1, context_tokens=100, vocabulary_tokens=1000
)


class Letters:
    """A tokenizer: a token per letter; a conversation is its contents, and it knows users only."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def chat(self, messages):
        for message in messages:
            if message["role"] != "user":
                raise ValueError(f"role {message['role']!r} is unknown; known is user")
        return self.encode("".join(message["content"] for message in messages))

    def decoder(self):
        raise NotImplementedError


def intake(*, codec=None, profile=PROFILE):
    return Intake({"m": profile}.get, {"m": codec}.get if codec else lambda _: None, lambda: ["m", "n"])


def packed(tokens):
    return common_pb2.Prompt(tokens_le32=pack_tokens(tokens))


def listed(tokens):
    return common_pb2.Prompt(token_list=common_pb2.TokenList(tokens=tokens))


def keyed(keys, tokens):
    return common_pb2.Prompt(block_keys=common_pb2.BlockKeys(keys=keys, prompt_tokens=tokens))


def chat(*pairs):
    messages = [common_pb2.ChatMessage(role=role, content=content) for role, content in pairs]
    return common_pb2.Prompt(chat=common_pb2.Chat(messages=messages))


def message(prompt=None, **facts):
    return router_pb2.RouteRequest(**{"model": "m", "prompt": packed(range(10)) if prompt is None else prompt, **facts})


def refused(asked, field, says, **how):
    with pytest.raises(RequestError) as caught:
        intake(**how).read(asked, 0.0)
    assert caught.value.field == field
    assert says in str(caught.value)


# -- what is read --------------------------------------------------------------------------------------------------


def test_tokens_become_keys_and_a_prompt():
    request, prompt = intake().read(message(), 5.0)
    assert request.block_keys == block_keys(pack_tokens(range(10)), 4)
    assert (request.prompt_tokens, prompt.tokens, prompt.packed) == (10, 10, pack_tokens(range(10)))
    assert (request.arrived_s, request.max_output_tokens) == (5.0, OUTPUT_TOKENS_DEFAULT)
    assert (request.ttft_deadline_s, request.session, request.origin) == (None, None, None)


def test_every_form_of_the_same_prompt_has_the_same_keys():
    forms = [
        packed([ord(c) for c in "abcdefghij"]),
        listed([ord(c) for c in "abcdefghij"]),
        common_pb2.Prompt(text="abcdefghij"),
        chat(("user", "abcde"), ("user", "fghij")),
    ]
    keys = {intake(codec=Letters()).read(message(form), 0.0)[0].block_keys for form in forms}
    assert len(keys) == 1


def test_keys_come_without_a_prompt():
    request, prompt = intake().read(message(keyed([1, 2**64 - 1], 11)), 0.0)
    assert (request.block_keys, request.prompt_tokens, prompt) == ((1, 2**64 - 1), 11, None)


def test_wishes_are_passed_on():
    asked = message(
        request_id="r", max_output_tokens=7, ttft_deadline_s=2.5, session="s", tenant="t", priority=-3, origin="far"
    )
    request, _ = intake().read(asked, 10.0)
    assert (request.id, request.max_output_tokens, request.ttft_deadline_s) == ("r", 7, 12.5)
    assert (request.session, request.tenant, request.priority, request.origin) == ("s", "t", -3, "far")


def test_a_request_without_an_id_is_given_one_of_its_own():
    one, other = (intake().read(message(), 0.0)[0].id for _ in range(2))
    assert one
    assert one != other


def test_adapters_and_salts_keep_to_themselves():
    """The seed goes with the prompt, since its worker makes keys of it too."""
    asked = [message(), message(lora="a"), message(tenant_salt="a"), message(lora="a", tenant_salt="a")]
    read = [intake().read(one, 0.0) for one in asked]
    assert len({request.block_keys for request, _ in read}) == 4
    seeds = [group_seed(), group_seed(lora="a"), group_seed(tenant_salt="a"), group_seed(lora="a", tenant_salt="a")]
    assert [prompt.key_seed for _, prompt in read] == seeds


def test_a_model_without_a_known_vocabulary_takes_any_token():
    profile = ModelProfile(name=ModelName("m"), block_tokens=4, bytes_per_token=1, context_tokens=100)
    assert intake(profile=profile).read(message(packed([2**32 - 1])), 0.0)[0].prompt_tokens == 1


@given(st.lists(st.integers(0, 999), min_size=1, max_size=84), st.integers(1, 16))
def test_what_fits_is_read(tokens, output):
    request, prompt = intake().read(message(listed(tokens), max_output_tokens=output), 0.0)
    assert request.prompt_tokens == len(tokens) == prompt.tokens
    assert len(request.block_keys) == len(tokens) // 4


# -- what is refused -----------------------------------------------------------------------------------------------


def test_an_unknown_model_is_no_fault_of_the_form():
    with pytest.raises(LookupError, match="model: no model 'x'; known are m, n"):
        intake().read(message(model="x"), 0.0)


def test_bytes_that_are_not_whole_tokens():
    refused(message(common_pb2.Prompt(tokens_le32=b"12345")), "prompt.tokens_le32", "four bytes per token, got 5 bytes")


@pytest.mark.parametrize("empty", [packed([]), listed([])], ids=["packed", "list"])
def test_a_prompt_without_tokens(empty):
    refused(message(empty), "prompt", "the prompt is empty; give at least one token")


def test_a_text_without_tokens():
    refused(message(common_pb2.Prompt(text="")), "prompt", "the prompt is empty", codec=Letters())


def test_no_prompt_at_all():
    refused(message(common_pb2.Prompt()), "prompt", "give tokens_le32, token_list, block_keys, text or chat")


@pytest.mark.parametrize("form", ["text", "chat"])
def test_text_for_a_router_without_a_tokenizer(form):
    prompt = chat(("user", "hi")) if form == "chat" else common_pb2.Prompt(text="hi")
    refused(message(prompt), f"prompt.{form}", "the router has no tokenizer for m; send token ids")


def test_a_conversation_that_the_template_does_not_take():
    asked = message(chat(("user", "hi"), ("wizard", "ho")))
    refused(asked, "prompt.chat", "role 'wizard' is unknown", codec=Letters())


def test_a_token_outside_of_the_vocabulary():
    """It would crash a worker, or silently name another token."""
    refused(message(packed([1, 1000, 3])), "prompt", "token id 1000 is outside the vocabulary of 1000")
    assert intake().read(message(packed([999])), 0.0)


@pytest.mark.parametrize(("tokens", "output"), [(85, 0), (84, 17), (100, 1), (1, 100)])
def test_more_than_the_context_holds(tokens, output):
    says = f"{tokens} tokens and {output or 16} to generate exceed the context of 100 tokens of m"
    refused(message(packed([1] * tokens), max_output_tokens=output), "prompt", says)


def test_keys_that_are_too_many_or_too_few():
    refused(message(keyed([1, 2, 3], 11)), "prompt.block_keys.keys", "11 tokens have 2 full blocks of 4, got 3 keys")
    refused(message(keyed([], 11)), "prompt.block_keys.keys", "got 0 keys")


def test_keys_of_an_empty_prompt():
    refused(message(keyed([], 0)), "prompt.block_keys.prompt_tokens", "the prompt is empty")


def test_keys_of_a_prompt_longer_than_any_context():
    refused(message(keyed([1] * 25, 100)), "prompt", "exceed the context")


def test_an_id_that_is_too_long():
    """In bytes, as they are kept and sent."""
    assert intake().read(message(request_id="é" * 64), 0.0)[0].id == "é" * 64
    refused(message(request_id="é" * 64 + "x"), "request_id", "longer than 128 bytes")


@pytest.mark.parametrize("deadline_s", [-0.1, float("nan"), float("inf"), float("-inf")])
def test_a_deadline_that_is_no_time(deadline_s):
    refused(message(ttft_deadline_s=deadline_s), "ttft_deadline_s", f"seconds from now, at least 0, got {deadline_s}")


@pytest.mark.parametrize("priority", [PRIORITY_MAX + 1, -PRIORITY_MAX - 1])
def test_a_priority_out_of_range(priority):
    refused(message(priority=priority), "priority", f"at most {PRIORITY_MAX} either way, got {priority}")
    assert intake().read(message(priority=PRIORITY_MAX), 0.0)[0].priority == PRIORITY_MAX
