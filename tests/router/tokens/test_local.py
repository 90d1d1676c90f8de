"""From request bodies to the tokens that vLLM would make: templates, parts, tools, other APIs, and what is refused."""

import asyncio
import contextlib
import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.blocks import pack_tokens, unpack_tokens
from homing.router.core.errors import ConfigError
from homing.router.tokens.local import LocalReader
from homing.router.tokens.template import ChatTemplate
from homing.router.tokens.text import TextReader
from homing.router.tokens.types import PromptError, TokenSource

from .kinds import SPECIAL, make, processors

pytest.importorskip("jinja2", reason="jinja2 is not installed: install homing[http]")

CHATML = (
    "{%- if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif -%}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}{{ call | tojson }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = "{% for m in messages %}{% for c in m['content'] %}{{ c | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
CHAT = "/v1/chat/completions"


def reader(template=CHATML, kind="smollm", **options):
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return LocalReader(make(kind), chat_template=template, special_tokens=tokens, **options)


def read(one, body, path=CHAT):
    return asyncio.run(one.read(path, body))


def text_of(one, body, path=CHAT):
    """The prompt's text: byte-level tokens give it back whole."""
    found = read(one, body, path)
    assert found.source is TokenSource.LOCAL
    return make("smollm").decode(list(unpack_tokens(found.packed)), skip_special_tokens=False)


def user(content, **more):
    return {"role": "user", "content": content, **more}


def test_a_chat_is_rendered_and_cut_at_the_templates_own_token():
    one = reader()
    assert not one.refusal
    assert text_of(one, {"messages": [user("hi")]}) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert one._tokens._rules.token == "<|im_start|>"
    assert reader(kind="gpt2", template=None)._tokens._rules.token == "</s>"


messages = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "assistant", "system", "tool"]),
        st.lists(st.sampled_from([*SPECIAL, "word ", "\n", "a\nb", "é", "<|im", "x" * 200]) | st.text(max_size=9)).map(
            "".join
        ),
    ),
    min_size=1,
    max_size=8,
)
ONE = {}


@pytest.mark.parametrize("kind", ["smollm", "metaspace first", "wordpiece"])
@given(told=messages)
@settings(max_examples=60, deadline=None)
def test_each_turn_has_the_tokens_of_the_whole_prompt(kind, told):
    one = ONE.setdefault(kind, reader(kind=kind, cache_bytes=1 << 20))
    plain = ONE.setdefault((kind, "plain"), make(kind))
    for turns in range(1, len(told) + 1):
        prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in told[:turns])
        ids = plain.encode(prompt + "<|im_start|>assistant\n", add_special_tokens=False).ids
        assert read(one, {"messages": told[:turns]}).packed == pack_tokens(ids)


def test_parts_are_joined_or_kept_as_the_template_wants():
    parts = [{"type": "text", "text": "a", "mark": 1}, {"type": "input_text", "text": "b"}, "c"]
    assert "user\na\nb\nc<|im_end|>" in text_of(reader(), {"messages": [user(parts)]})
    kept = '{"type": "text", "text": "a", "mark": 1}{"type": "text", "text": "b"}{"type": "text", "text": "c"}</s>'
    assert text_of(reader(PARTS), {"messages": [user(parts)]}) == kept
    assert text_of(reader(PARTS), {"messages": [user("a<é>")]}) == '{"type": "text", "text": "a<é>"}</s>'


MACRO = "{% macro w(p) %}{% for c in p %}{% endfor %}{% endmacro %}"
LOOP = "{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (CHATML, "string"),
        (PARTS, "openai"),
        (LOOP, "openai"),
        ("{% set a = messages[1:] %}{% set b = a %}" + LOOP.replace("messages", "b"), "openai"),
        (LOOP.replace("m.content", "m['content'] | list"), "openai"),
        (MACRO + "{% for m in messages %}{{ w(m.content) }}{% endfor %}", "openai"),
        (MACRO + "{% for m in messages %}{{ w(p=m.content) }}{% endfor %}", "openai"),
        (MACRO + "{% for m in messages %}{{ w(m.role) }}{% endfor %}", "string"),
        (
            "{% for m in messages %}{% set content = m.content %}{% for c in content %}{% endfor %}{% endfor %}",
            "openai",
        ),
        (LOOP.replace("m.content", "m.tool_calls"), "string"),
        ("{% set ns = namespace() %}{% set ns.m = messages %}" + LOOP, "string"),
    ],
)
def test_the_content_format_follows_from_the_syntax(template, form):
    assert ChatTemplate(template).content_format == form


def test_tools_and_calls_are_written_in_the_engines_order():
    tool = {"type": "function", "function": {"parameters": {"b": 1}, "name": "f", "own": 1}, "own": 2}
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}, "id": "c1"}
    body = {"messages": [user("q"), {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": [tool]}
    text = text_of(reader(), body)
    assert '[{"type": "function", "function": {"name": "f", "description": null, "parameters": {"b": 1}}}]' in text
    assert 'assistant\n{"id": "c1", "function": {"arguments": {"x": "é"}, "name": "f"}, "type": "function"}' in text


def test_a_template_for_tools_is_taken_if_there_are_tools():
    one = reader({"default": "plain", "tool_use": "tools"})
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert text_of(one, {"messages": [user("q")]}) == "plain"
    assert text_of(one, {"messages": [user("q")], "tools": tools}) == "tools"


def test_developers_speak_as_the_system_once_and_first():
    told = [user("q"), {"role": "developer", "content": "d"}, {"role": "system", "content": "s"}]
    assert text_of(reader(), {"messages": told}).startswith(
        "<|im_start|>system\nd\n\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant"
    )
    knowing = reader(CHATML + "{# 'developer' #}")
    assert "<|im_start|>developer\nd<|im_end|>" in text_of(knowing, {"messages": told})


def test_an_unfinished_answer_is_gone_on_with():
    told = [user("q"), {"role": "assistant", "content": "The answer "}]
    body = {"messages": told, "add_generation_prompt": False, "continue_final_message": True}
    assert text_of(reader(), body).endswith("<|im_start|>assistant\nThe answer ")
    trimming = reader(CHATML.replace("message.content }}", "message.content | trim }}"))
    assert text_of(trimming, body).endswith("<|im_start|>assistant\nThe answer")
    with pytest.raises(PromptError, match="add_generation_prompt"):
        read(reader(), {"messages": told, "continue_final_message": True})


def test_variables_reach_the_template():
    one = reader("{{ bos_token }}{{ enable_thinking }} {{ reasoning_effort }} {{ mood }}")
    body = {"messages": [user("q")], "chat_template_kwargs": {"mood": "glad"}, "reasoning_effort": "none"}
    assert text_of(one, body) == "<s>False none glad"
    dated = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26))
    assert dated.render([user("q")]) == "26 Jul 2024"
    assert ChatTemplate("{% generation %}a{{ 1 }}{% endgeneration %}").render([user("q")]) == "a1"


@pytest.mark.parametrize(
    ("template", "body", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", {"messages": [user("q")]}, "roles must alternate"),
        ("{{ messages[0].content + 1 }}", {"messages": [user("q")]}, "refuses them"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", {"messages": [user("q")]}, "longer than"),
        ("{{ messages.append(1) }}", {"messages": [user("q")]}, "refuses them"),
        (CHATML, {"messages": []}, "at least one"),
        (CHATML, {"messages": "q"}, "messages: must be a list"),
        (CHATML, {}, "messages: must be a list"),
        (CHATML, {"messages": [{"content": "q"}]}, r"messages\[0\].role"),
        (CHATML, {"messages": [user(3)]}, r"messages\[0\].content"),
        (CHATML, {"messages": [user([3])]}, r"messages\[0\].content\[0\]"),
        (CHATML, {"messages": [user([{"type": "text", "text": 3}])]}, r"content\[0\].text"),
        (CHATML, {"messages": [{"role": "assistant", "tool_calls": [3]}]}, r"tool_calls\[0\]"),
        (CHATML, {"messages": [user("q")], "tools": [{}]}, r"tools\[0\].function"),
        (CHATML, {"messages": [user("q")], "chat_template_kwargs": 3}, "chat_template_kwargs"),
        (CHATML, {"messages": [user("q")], "truncate_prompt_tokens": "x"}, "truncate_prompt_tokens"),
        (CHATML, {"messages": [user("q\ud800")]}, "no Unicode"),
    ],
)
def test_what_an_engine_would_refuse_is_refused_with_a_reason(template, body, says):
    with pytest.raises(PromptError, match=says):
        read(reader(template), body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [user([{"type": "image_url", "image_url": {"url": "http://x"}}])]}),
        (CHAT, {"messages": [user("q")], "chat_template": "{{ 1 }}"}),
        ("/v1/responses", {"input": "q", "previous_response_id": "r1"}),
        ("/v1/completions", {"prompt_embeds": "AAAA"}),
    ],
)
def test_what_only_the_engine_knows_is_left_to_the_fallback(path, body):
    assert read(reader(), body, path).source is TokenSource.TEXT


def test_a_model_without_a_template_has_no_chats_of_its_own():
    assert read(reader(None), {"messages": [user("q")]}).source is TokenSource.TEXT
    assert read(reader(None), {"prompt": "q"}, "/v1/completions").source is TokenSource.LOCAL
    with pytest.raises(PromptError, match="no prompt is known"):
        read(reader(), {}, "/v1/embeddings")
    with pytest.raises(ValueError, match="chat template"):
        reader("{% if %}")


def completion(one, **body):
    return unpack_tokens(read(one, body, "/v1/completions").packed)


def test_a_completion_gets_its_special_tokens_and_is_shortened_as_asked():
    one, plain = reader(), make("smollm")
    text = "one two three four five six"
    bare, full = (tuple(plain.encode(text, add_special_tokens=special).ids) for special in (False, True))
    assert completion(one, prompt=text) == full
    assert completion(one, prompt=text, add_special_tokens=False) == bare
    assert completion(one, prompt=[text, "other"]) == full
    assert completion(one, prompt=text, truncate_prompt_tokens=5) == (full[0], *bare[-3:], full[-1])
    assert completion(one, prompt=text, truncate_prompt_tokens=5, truncation_side="right") == full[:5]
    assert completion(one, prompt=text, truncate_prompt_tokens=-1) == full
    short = reader(context_tokens=6)
    assert completion(short, prompt=text, truncate_prompt_tokens=-1, max_tokens=3) == (full[0], *bare[-3:], full[-1])


def test_token_ids_are_taken_as_they_are():
    assert completion(reader(), prompt=[1, 2, 3]) == (1, 2, 3)
    assert completion(reader(), prompt=[[4, 5], [6]]) == (4, 5)
    for wrong in ([-1], [1, "a"], [1.5], [2**32], [], None, 7):
        with pytest.raises(PromptError, match="prompt"):
            completion(reader(), prompt=wrong)


def test_anthropics_messages_become_chat_messages():
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "3"}]}
    told = [
        user("w?"),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
        user([result, {"type": "text", "text": "so?"}]),
        {"role": "system", "content": "late"},
    ]
    system = [{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "S"}]
    text = text_of(reader(), {"system": system, "messages": told}, "/v1/messages")
    assert text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nw?")
    assert '"arguments": {"a": 1}' in text
    assert "tool\n3<|im_end|>\n<|im_start|>user\nso?<|im_end|>\n<|im_start|>system\nlate<|im_end|>" in text
    strict = CHATML.replace(
        "{{ '<|im_start|>' + message.role",
        "{% if message.role == 'system' and not loop.first %}{{ raise_exception('') }}{% endif %}"
        "{{ '<|im_start|>' + message.role",
    )
    assert "system\nSlate<|im_end|>" in text_of(reader(strict), {"system": "S", "messages": told}, "/v1/messages")


def test_responses_input_becomes_chat_messages():
    items = [
        user([{"type": "input_text", "text": "q"}]),
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
        {
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [{"type": "output_text", "text": "so"}],
        },
    ]
    text = text_of(reader(), {"instructions": "I", "input": items}, "/v1/responses")
    assert text.startswith("<|im_start|>system\nI<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{")
    assert text.endswith("<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\nso")
    assert "user\nq<|im_end|>" in text_of(reader(), {"input": "q"}, "/v1/responses")


def write(folder, config, files=()):
    make("smollm").save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in dict(files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_folder_is_read_as_transformers_reads_it(tmp_path):
    end = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "special": True}
    config = {
        "bos_token": "<s>",
        "eos_token": end,
        "pad_token": "<new pad>",
        "chat_template": "{{ eos_token }}{{ pad_token }}",
    }
    one = LocalReader.from_folder(write(tmp_path, config))
    assert read(one, {"messages": [user("q")]}).tokens == 2, "a token that only the config names was added"
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert text_of(LocalReader.from_folder(write(tmp_path, {"chat_template": named})), {"messages": [user("q")]}) == "a"
    one = LocalReader.from_folder(write(tmp_path, config, {"chat_template.jinja": "c"}))
    assert text_of(one, {"messages": [user("q")]}) == "c"
    assert text_of(LocalReader.from_folder(tmp_path, chat_template="d"), {"messages": [user("q")]}) == "d"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "tokenizer.json: is not there"),
        ({"tokenizer.json": "{}"}, "tokenizer.json: is no tokenizer"),
        ({"tokenizer_config.json": "{"}, "tokenizer_config.json: is no JSON"),
        ({"tokenizer_config.json": "[]"}, "must hold an object"),
        ({"tokenizer_config.json": '{"chat_template": [3]}'}, "chat_template must be"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named(tmp_path, files, says):
    if "tokenizer_config.json" in files:
        write(tmp_path, {})
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        LocalReader.from_folder(tmp_path)


def test_a_post_processor_that_is_not_understood_is_left_to_the_tokenizer():
    tokenizer = make("smollm")
    ids = [("<s>", tokenizer.token_to_id("<s>"))]
    twice = processors.TemplateProcessing(single="<s> $A", special_tokens=ids)
    tokenizer.post_processor = processors.Sequence([twice, processors.ByteLevel(trim_offsets=False), twice])
    one = LocalReader(tokenizer)
    bare = make("smollm").encode("one two", add_special_tokens=False).ids
    assert list(completion(one, prompt="one two")) == tokenizer.encode("one two").ids
    assert completion(one, prompt="one two", add_special_tokens=False) == tuple(bare)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["text", "a", "function", "function_call"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "input",
                         "tool_use_id", "output", "effort", "status", "summary"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
FIELDS = [
    "messages", "prompt", "input", "tools", "system", "instructions", "reasoning", "thinking", "output_config",
    "chat_template_kwargs", "documents", "truncate_prompt_tokens", "truncation_side", "max_tokens", "reasoning_effort",
    "add_special_tokens", "continue_final_message", "add_generation_prompt",
]  # fmt: skip
told = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": junk})
)


@given(
    path=st.sampled_from([CHAT, "/v1/completions", "/v1/responses", "/v1/messages"]),
    body=st.dictionaries(st.sampled_from(FIELDS), junk, max_size=5),
    more=st.fixed_dictionaries({}, optional={"messages": told | st.just([user("q")]), "input": told}),
)
@settings(max_examples=400, deadline=None)
def test_whatever_is_sent_is_read_or_refused(path, body, more):
    one = ONE.setdefault("any", reader(cache_bytes=100_000))
    for any_reader in (one, TextReader()):
        with contextlib.suppress(PromptError):
            asyncio.run(any_reader.read(path, body | more))
