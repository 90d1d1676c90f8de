from homing.protos import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerMessage(_message.Message):
    __slots__ = ("hello", "load", "draining")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    load: LoadReport
    draining: Draining
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., load: _Optional[_Union[LoadReport, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("worker_id", "model", "role", "site", "address", "address_from", "block_tokens", "kv_blocks_max", "requests_max", "kv_format", "kv_bytes_per_token", "layers", "context_tokens", "vocabulary_tokens", "prefill_a_s", "prefill_b_s", "prefill_q_s", "measured")
    class AddressFromEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FROM_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_MAX_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_MAX_FIELD_NUMBER: _ClassVar[int]
    KV_FORMAT_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_A_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_B_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_Q_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    model: str
    role: str
    site: str
    address: str
    address_from: _containers.ScalarMap[str, str]
    block_tokens: int
    kv_blocks_max: int
    requests_max: int
    kv_format: str
    kv_bytes_per_token: int
    layers: int
    context_tokens: int
    vocabulary_tokens: int
    prefill_a_s: float
    prefill_b_s: float
    prefill_q_s: float
    measured: _containers.RepeatedCompositeFieldContainer[_common_pb2.PrefillOutcome]
    def __init__(self, worker_id: _Optional[str] = ..., model: _Optional[str] = ..., role: _Optional[str] = ..., site: _Optional[str] = ..., address: _Optional[str] = ..., address_from: _Optional[_Mapping[str, str]] = ..., block_tokens: _Optional[int] = ..., kv_blocks_max: _Optional[int] = ..., requests_max: _Optional[int] = ..., kv_format: _Optional[str] = ..., kv_bytes_per_token: _Optional[int] = ..., layers: _Optional[int] = ..., context_tokens: _Optional[int] = ..., vocabulary_tokens: _Optional[int] = ..., prefill_a_s: _Optional[float] = ..., prefill_b_s: _Optional[float] = ..., prefill_q_s: _Optional[float] = ..., measured: _Optional[_Iterable[_Union[_common_pb2.PrefillOutcome, _Mapping]]] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("sequence", "queued_prefill_tokens", "running_requests", "kv_blocks_used")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    queued_prefill_tokens: int
    running_requests: int
    kv_blocks_used: int
    def __init__(self, sequence: _Optional[int] = ..., queued_prefill_tokens: _Optional[int] = ..., running_requests: _Optional[int] = ..., kv_blocks_used: _Optional[int] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RouterMessage(_message.Message):
    __slots__ = ("welcome",)
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("report_every_s",)
    REPORT_EVERY_S_FIELD_NUMBER: _ClassVar[int]
    report_every_s: float
    def __init__(self, report_every_s: _Optional[float] = ...) -> None: ...

class KvEventBatch(_message.Message):
    __slots__ = ("worker_id", "sequence", "events")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    sequence: int
    events: _containers.RepeatedCompositeFieldContainer[KvEvent]
    def __init__(self, worker_id: _Optional[str] = ..., sequence: _Optional[int] = ..., events: _Optional[_Iterable[_Union[KvEvent, _Mapping]]] = ...) -> None: ...

class KvEvent(_message.Message):
    __slots__ = ("stored", "removed", "cleared", "tier")
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    stored: Stored
    removed: Removed
    cleared: Cleared
    tier: str
    def __init__(self, stored: _Optional[_Union[Stored, _Mapping]] = ..., removed: _Optional[_Union[Removed, _Mapping]] = ..., cleared: _Optional[_Union[Cleared, _Mapping]] = ..., tier: _Optional[str] = ...) -> None: ...

class Stored(_message.Message):
    __slots__ = ("keys", "parent")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[int]
    parent: int
    def __init__(self, keys: _Optional[_Iterable[int]] = ..., parent: _Optional[int] = ...) -> None: ...

class Removed(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keys: _Optional[_Iterable[int]] = ...) -> None: ...

class Cleared(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KvEventAck(_message.Message):
    __slots__ = ("sequence", "resync", "reason")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESYNC_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    resync: bool
    reason: str
    def __init__(self, sequence: _Optional[int] = ..., resync: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...
