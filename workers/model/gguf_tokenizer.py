"""The tokenizer that a GGUF file carries in its metadata, as Hugging Face's tokenizer files."""

import json
from collections.abc import Mapping
from typing import Any

from .config import UnsupportedModelError

_CONTROL, _USER_DEFINED = 3, 4  # ggml's token types

# Tokens that end an answer by name, as llama.cpp treats them: the metadata name one of them only.
_END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "</s>")

_SPLITS_DIGITS = {"smollm": True, "gpt-2": False}


def end_ids(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer: those that the metadata name, then control tokens known by name."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    named = [fields[f"tokenizer.ggml.{key}"] for key in keys if f"tokenizer.ggml.{key}" in fields]
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    known = [
        token
        for token, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == _CONTROL and text in _END_TOKENS
    ]
    return tuple(dict.fromkeys(named + known))


def tokenizer_files(fields: Mapping[str, Any]) -> dict[str, str]:
    """`tokenizer.json` and `tokenizer_config.json` by name. `UnsupportedModelError` if not byte-level BPE."""
    config = {
        "chat_template": fields.get("tokenizer.chat_template"),
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        "model_max_length": fields.get("llama.context_length"),
    }
    return {
        "tokenizer.json": _tokenizer_json(fields),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False),
    }


def _tokenizer_json(fields: Mapping[str, Any]) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - optional

    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLITS_DIGITS or fields.get("tokenizer.ggml.add_bos_token"):
        raise UnsupportedModelError(
            f"GGUF: a tokenizer of model {kind!r} and pre-tokenizer {split!r} (add_bos_token "
            f"{fields.get('tokenizer.ggml.add_bos_token')}) is not supported, only 'gpt2' with "
            f"{' or '.join(_SPLITS_DIGITS)} and no begin token: load the model in Hugging Face layout"
        )
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {text: token for token, text in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if _SPLITS_DIGITS[split] else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for text, token_type in zip(tokens, types, strict=True):
        if token_type in {_CONTROL, _USER_DEFINED}:
            tokenizer.add_tokens([AddedToken(text, special=token_type == _CONTROL, normalized=False)])
    return str(tokenizer.to_str())
