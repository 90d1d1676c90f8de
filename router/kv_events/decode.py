"""Reading the messages of vLLM and SGLang: msgpack, in both encodings that are in use.

A message is an array `[time, events, data_parallel_rank]`. An event is a map with `type`, or, from older builds, an
array of its type and its fields in the order of `STORED_FIELDS` or `REMOVED_FIELDS`, the last of which may lack.

Rule 1: fields that are not known are skipped, and so are events of an unknown type, which are counted: engines add
both. Known ones that are missing or of another type raise KvEventError.
Rule 2: hashes are unsigned (SGLang's are signed on the wire) or bytes.
Rule 3: a cache salt is SGLang's field `cache_salt`, or in vLLM's `extra_keys` of a prompt's first block, bare or tagged
(`["cache_salt", salt]`).
Rule 4: whatever else is in `extra_keys` (an image, an embedding) makes that block and all after it something that no
text can name.
Rule 5: of token pairs (SGLang's pages for speculative decoding) the first is the token.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..core.blocks import pack_tokens
from .events import (
    EngineBatch,
    EngineCleared,
    EngineEvent,
    EngineHash,
    EngineRemoved,
    EngineStored,
    KvEventError,
    Place,
)

STORED_FIELDS = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
    "locality",
    "ownership",
    "session_id",
)
REMOVED_FIELDS = ("block_hashes", "medium", "group_idx", "locality", "ownership")
_MASK_64 = (1 << 64) - 1
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)


def decode_batch(payload: bytes) -> EngineBatch:
    """One message's payload. Raises KvEventError, which names what is wrong with it.

    >>> decode_batch(msgspec.msgpack.encode([1.5, [["BlockRemoved", [-1], "GPU"]]])).events[0].hashes
    (18446744073709551615,)
    """
    try:
        raw = msgspec.msgpack.decode(payload)
    except _UNREADABLE as error:
        raise KvEventError(f"a message of {len(payload)} bytes is not msgpack: {error}") from error
    if not isinstance(raw, list) or len(raw) < 2:
        raise KvEventError(f"a message must be an array [time, events, rank]; found {_shown(raw)}")
    told_s, events, rank = raw[0], raw[1], raw[2] if len(raw) > 2 else None
    if not _is_number(told_s):
        raise KvEventError(f"a message's time must be a number; found {_shown(told_s)}")
    if not isinstance(events, list):
        raise KvEventError(f"a message's events must be an array; found {_shown(events)}")
    read = [event for event in map(_event, events) if event is not None]
    return EngineBatch(
        told_s=float(told_s),
        events=tuple(read),
        rank=_optional("data_parallel_rank", rank, int),
        unknown=len(events) - len(read),
    )


def _event(raw: Any) -> EngineEvent | None:
    """One event of either encoding; None if its type is unknown."""
    if isinstance(raw, dict):
        tag, fields = raw.get("type"), raw
    elif isinstance(raw, list) and raw:
        order = REMOVED_FIELDS if raw[0] == "BlockRemoved" else STORED_FIELDS
        tag, fields = raw[0], dict(zip(order, raw[1:], strict=False))
    else:
        tag, fields = None, {}
    match tag:
        case "BlockStored":
            return _stored(fields)
        case "BlockRemoved":
            group = _optional("group_idx", fields.get("group_idx"), int)
            return EngineRemoved(hashes=_hashes(tag, fields), place=_place(fields), group=group)
        case "AllBlocksCleared":
            return EngineCleared()
        case str():
            return None
    raise KvEventError(f"an event must be a map with a type, or an array that begins with one; found {_shown(raw)}")


def _stored(fields: Mapping[str, Any]) -> EngineStored:
    hashes = _hashes("BlockStored", fields)
    parent = fields.get("parent_block_hash")
    block_tokens = fields.get("block_size")
    if not isinstance(block_tokens, int) or block_tokens < 0:
        raise KvEventError(f"BlockStored: block_size must be a whole number, at least 0; found {_shown(block_tokens)}")
    lora = _lora(fields)
    salt, text_blocks = _read_extra_keys(fields.get("extra_keys"), lora, len(hashes), is_first=parent is None)
    return EngineStored(
        hashes=hashes,
        parent=None if parent is None else _hash(parent),
        packed_tokens=_packed(fields.get("token_ids")),
        block_tokens=block_tokens,
        place=_place(fields),
        lora=lora,
        salt=_optional("cache_salt", fields.get("cache_salt"), str) or salt,
        text_blocks=text_blocks,
        group=_optional("group_idx", fields.get("group_idx"), int),
        kind=_optional("kv_cache_spec_kind", fields.get("kv_cache_spec_kind"), str),
    )


def _place(fields: Mapping[str, Any]) -> Place:
    return Place(
        medium=_optional("medium", fields.get("medium"), str),
        owner=_optional("ownership", fields.get("ownership"), str) or "",
        is_remote=_optional("locality", fields.get("locality"), str) == "REMOTE",
    )


def _lora(fields: Mapping[str, Any]) -> str:
    """The adapter's name; one that is only numbered gets a name that no request asks for, and shares nothing."""
    name = _optional("lora_name", fields.get("lora_name"), str) or ""
    number = _optional("lora_id", fields.get("lora_id"), int)
    return name or ("" if number is None else f"#{number}")


def _hashes(tag: str, fields: Mapping[str, Any]) -> tuple[EngineHash, ...]:
    raw = fields.get("block_hashes")
    if not isinstance(raw, list):
        raise KvEventError(f"{tag}: block_hashes must be an array; found {_shown(raw)}")
    return tuple(map(_hash, raw))


def _hash(raw: Any) -> EngineHash:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw & _MASK_64
    if isinstance(raw, bytes) and raw:
        return raw
    raise KvEventError(f"a block hash must be a whole number or bytes; found {_shown(raw)}")


def _packed(raw: Any) -> bytes:
    if not isinstance(raw, list):
        raise KvEventError(f"BlockStored: token_ids must be an array; found {_shown(raw)}")
    if raw and isinstance(raw[0], list):
        raw = [pair[0] if isinstance(pair, list) and pair else None for pair in raw]
    try:
        return pack_tokens(raw)
    except struct.error as error:
        raise KvEventError(f"BlockStored: token_ids must be unsigned 32-bit numbers: {error}") from error


def _read_extra_keys(raw: Any, lora: str, blocks: int, *, is_first: bool) -> tuple[str, int]:
    """The salt, and how many leading blocks are text alone (rules 3 and 4)."""
    if raw is None:
        return "", blocks
    if not isinstance(raw, list) or not all(entry is None or isinstance(entry, list) for entry in raw):
        raise KvEventError(f"BlockStored: extra_keys must have an array or nil per block; found {_shown(raw)}")
    salt = ""
    for index, entry in enumerate(raw[:blocks]):
        keys = [key for position, key in enumerate(entry or ()) if not _is_lora(key, position, lora)]
        if is_first and index == 0 and keys:
            salt = _salt(keys)
            keys = keys[1:] if salt else keys
        if keys:
            return salt, index
    return salt, blocks


def _is_lora(key: Any, position: int, lora: str) -> bool:
    is_tagged = isinstance(key, list) and len(key) == 3 and key[0] == "lora"
    return is_tagged or (position == 0 and bool(lora) and key == lora)


def _salt(keys: Sequence[Any]) -> str:
    """The salt, if these keys begin with one. What comes before a salt is not text, and then it does not matter."""
    match keys[0]:
        case str(bare):
            return bare
        case ["cache_salt", str(tagged)]:
            return tagged
    return ""


def _optional(name: str, raw: Any, kind: type) -> Any:
    if raw is None or (isinstance(raw, kind) and not isinstance(raw, bool)):
        return raw
    raise KvEventError(f"{name} must be of type {kind.__name__} or nil; found {_shown(raw)}")


def _is_number(raw: Any) -> bool:
    return isinstance(raw, int | float) and not isinstance(raw, bool)


def _shown(raw: Any) -> str:
    text = repr(raw)
    return text if len(text) <= 80 else f"{text[:77]}..."
