"""A tokenizer's folder in Hugging Face's layout, read as `transformers` 5 and vLLM read it.

`tokenizer.json` is the tokenizer. `tokenizer_config.json` names the special tokens and may add tokens to it; the chat
template stands in it, alone or as a list of named ones, unless there is a `chat_template.jinja`. Folders of models
whose prompts are not made by a template (gpt-oss, Mistral's own format) are not told apart: name an engine for those.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homing.router.core.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFolder:
    """What a folder holds; chat templates (`default` is the usual one) and texts of special tokens are by name."""

    tokenizer: "Tokenizer"
    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]


def read_folder(folder: Path) -> TokenizerFolder:
    """Read a folder. Raises ConfigError that names the file and what is wrong with it."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ConfigError(f"{folder}: to read a tokenizer, install homing[http]") from error
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"{path}: is not there: a tokenizer's folder must hold tokenizer.json in Hugging Face's format"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ConfigError(f"{path}: is no tokenizer of Hugging Face's `tokenizers`: {error}") from error
    config = _json(folder / "tokenizer_config.json")
    if not config.get("added_tokens_decoder"):
        config |= _json(folder / "special_tokens_map.json")
    special_tokens = {name: text for name in NAMED_TOKENS if (text := _text_of(config.get(name)))}
    _add_tokens(tokenizer, config, special_tokens)
    return TokenizerFolder(tokenizer=tokenizer, templates=_templates(folder, config), special_tokens=special_tokens)


def _json(path: Path) -> dict[str, Any]:
    """A file's object; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{path}: must hold an object, found {type(read).__name__}")
    return read


def _text_of(token: Any) -> str | None:
    """A special token, written as text or as an object with its `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _add_tokens(tokenizer: "Tokenizer", config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Tokens that the config knows better than the tokenizer."""
    from tokenizers import AddedToken  # noqa: PLC0415 - optional

    known = tokenizer.get_added_tokens_decoder()
    described = sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0]))
    tokens = [AddedToken(**token) for _, token in described]
    told = {repr(token) for token in known.values()}
    new = [token for token in tokens if repr(token) not in told]
    here = {token.content for token in (*known.values(), *new)}
    new += [AddedToken(text, special=True) for text in dict.fromkeys(special_tokens.values()) if text not in here]
    if new:
        tokenizer.add_tokens(new)


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name."""
    files = {
        "default": folder / "chat_template.jinja",
        **{path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))},
    }
    written = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    if written:
        return written
    template = config.get("chat_template")
    if isinstance(template, str):
        return {"default": template}
    named = template or []
    if not isinstance(named, list) or not all(isinstance(entry, dict) for entry in named):
        raise ConfigError(
            f"{folder / 'tokenizer_config.json'}: chat_template must be text or a list of objects with a name and a "
            f"template, found {type(template).__name__}"
        )
    return {str(entry.get("name")): str(entry.get("template")) for entry in named}
