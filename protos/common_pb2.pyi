from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PlanKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLAN_KIND_UNSPECIFIED: _ClassVar[PlanKind]
    PLAN_KIND_LOCAL: _ClassVar[PlanKind]
    PLAN_KIND_FETCH: _ClassVar[PlanKind]
    PLAN_KIND_SPLIT: _ClassVar[PlanKind]
    PLAN_KIND_REMOTE: _ClassVar[PlanKind]
    PLAN_KIND_DIRECT: _ClassVar[PlanKind]

class MoveKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MOVE_KIND_UNSPECIFIED: _ClassVar[MoveKind]
    MOVE_KIND_FETCH: _ClassVar[MoveKind]
    MOVE_KIND_MEET: _ClassVar[MoveKind]
    MOVE_KIND_SHIP: _ClassVar[MoveKind]
PLAN_KIND_UNSPECIFIED: PlanKind
PLAN_KIND_LOCAL: PlanKind
PLAN_KIND_FETCH: PlanKind
PLAN_KIND_SPLIT: PlanKind
PLAN_KIND_REMOTE: PlanKind
PLAN_KIND_DIRECT: PlanKind
MOVE_KIND_UNSPECIFIED: MoveKind
MOVE_KIND_FETCH: MoveKind
MOVE_KIND_MEET: MoveKind
MOVE_KIND_SHIP: MoveKind

class Prompt(_message.Message):
    __slots__ = ("tokens_le32", "token_list", "block_keys", "text", "chat")
    TOKENS_LE32_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LIST_FIELD_NUMBER: _ClassVar[int]
    BLOCK_KEYS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    tokens_le32: bytes
    token_list: TokenList
    block_keys: BlockKeys
    text: str
    chat: Chat
    def __init__(self, tokens_le32: _Optional[bytes] = ..., token_list: _Optional[_Union[TokenList, _Mapping]] = ..., block_keys: _Optional[_Union[BlockKeys, _Mapping]] = ..., text: _Optional[str] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ...) -> None: ...

class TokenList(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class BlockKeys(_message.Message):
    __slots__ = ("keys", "prompt_tokens")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: int
    def __init__(self, keys: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "seed", "top_p", "top_k")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    seed: int
    top_p: float
    top_k: int
    def __init__(self, temperature: _Optional[float] = ..., seed: _Optional[int] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("kind", "source", "target", "block_first", "block_end", "bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIRST_FIELD_NUMBER: _ClassVar[int]
    BLOCK_END_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: MoveKind
    source: str
    target: str
    block_first: int
    block_end: int
    bytes: int
    def __init__(self, kind: _Optional[_Union[MoveKind, str]] = ..., source: _Optional[str] = ..., target: _Optional[str] = ..., block_first: _Optional[int] = ..., block_end: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Estimate(_message.Message):
    __slots__ = ("network_s", "queue_s", "fetch_s", "prefill_s", "ship_s", "toll_s", "ttft_s", "score_s", "hit_tokens", "computed_tokens", "moved_bytes")
    NETWORK_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    FETCH_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    SHIP_S_FIELD_NUMBER: _ClassVar[int]
    TOLL_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    SCORE_S_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    network_s: float
    queue_s: float
    fetch_s: float
    prefill_s: float
    ship_s: float
    toll_s: float
    ttft_s: float
    score_s: float
    hit_tokens: int
    computed_tokens: int
    moved_bytes: int
    def __init__(self, network_s: _Optional[float] = ..., queue_s: _Optional[float] = ..., fetch_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., ship_s: _Optional[float] = ..., toll_s: _Optional[float] = ..., ttft_s: _Optional[float] = ..., score_s: _Optional[float] = ..., hit_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., moved_bytes: _Optional[int] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("kind", "prefill", "decode", "moves", "estimate")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    kind: PlanKind
    prefill: str
    decode: str
    moves: _containers.RepeatedCompositeFieldContainer[Move]
    estimate: Estimate
    def __init__(self, kind: _Optional[_Union[PlanKind, str]] = ..., prefill: _Optional[str] = ..., decode: _Optional[str] = ..., moves: _Optional[_Iterable[_Union[Move, _Mapping]]] = ..., estimate: _Optional[_Union[Estimate, _Mapping]] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("request_id", "plan", "runners_up", "policy", "attempt", "plans_priced", "decided_in_s", "addresses")
    class AddressesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RUNNERS_UP_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PLANS_PRICED_FIELD_NUMBER: _ClassVar[int]
    DECIDED_IN_S_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    plan: Plan
    runners_up: _containers.RepeatedCompositeFieldContainer[Plan]
    policy: str
    attempt: int
    plans_priced: int
    decided_in_s: float
    addresses: _containers.ScalarMap[str, str]
    def __init__(self, request_id: _Optional[str] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., runners_up: _Optional[_Iterable[_Union[Plan, _Mapping]]] = ..., policy: _Optional[str] = ..., attempt: _Optional[int] = ..., plans_priced: _Optional[int] = ..., decided_in_s: _Optional[float] = ..., addresses: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TransferOutcome(_message.Message):
    __slots__ = ("source", "target", "kind", "bytes", "lasted_s", "flowing_s", "rtt_s", "blocks_arrived", "complete", "reason")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LASTED_S_FIELD_NUMBER: _ClassVar[int]
    FLOWING_S_FIELD_NUMBER: _ClassVar[int]
    RTT_S_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_ARRIVED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    kind: MoveKind
    bytes: int
    lasted_s: float
    flowing_s: float
    rtt_s: float
    blocks_arrived: int
    complete: bool
    reason: str
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., kind: _Optional[_Union[MoveKind, str]] = ..., bytes: _Optional[int] = ..., lasted_s: _Optional[float] = ..., flowing_s: _Optional[float] = ..., rtt_s: _Optional[float] = ..., blocks_arrived: _Optional[int] = ..., complete: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class PrefillOutcome(_message.Message):
    __slots__ = ("worker", "computed_from_tokens", "computed_to_tokens", "compute_s")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FROM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TO_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    worker: str
    computed_from_tokens: int
    computed_to_tokens: int
    compute_s: float
    def __init__(self, worker: _Optional[str] = ..., computed_from_tokens: _Optional[int] = ..., computed_to_tokens: _Optional[int] = ..., compute_s: _Optional[float] = ...) -> None: ...
