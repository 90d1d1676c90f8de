from homing.protos import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlockOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLOCK_ORDER_UNSPECIFIED: _ClassVar[BlockOrder]
    BLOCK_ORDER_FRONT_TO_BACK: _ClassVar[BlockOrder]
    BLOCK_ORDER_BACK_TO_FRONT: _ClassVar[BlockOrder]
BLOCK_ORDER_UNSPECIFIED: BlockOrder
BLOCK_ORDER_FRONT_TO_BACK: BlockOrder
BLOCK_ORDER_BACK_TO_FRONT: BlockOrder

class BlockSource(_message.Message):
    __slots__ = ("move", "address")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    move: _common_pb2.Move
    address: str
    def __init__(self, move: _Optional[_Union[_common_pb2.Move, _Mapping]] = ..., address: _Optional[str] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("request_id", "tokens_le32", "key_seed", "sources", "handover_first_block", "handover_end_block", "handover_lease_s")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LE32_FIELD_NUMBER: _ClassVar[int]
    KEY_SEED_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_END_BLOCK_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_LEASE_S_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tokens_le32: bytes
    key_seed: int
    sources: _containers.RepeatedCompositeFieldContainer[BlockSource]
    handover_first_block: int
    handover_end_block: int
    handover_lease_s: float
    def __init__(self, request_id: _Optional[str] = ..., tokens_le32: _Optional[bytes] = ..., key_seed: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[BlockSource, _Mapping]]] = ..., handover_first_block: _Optional[int] = ..., handover_end_block: _Optional[int] = ..., handover_lease_s: _Optional[float] = ...) -> None: ...

class PrefillReply(_message.Message):
    __slots__ = ("prefills", "transfers", "queued_s", "hit_tokens")
    PREFILLS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prefills: _containers.RepeatedCompositeFieldContainer[_common_pb2.PrefillOutcome]
    transfers: _containers.RepeatedCompositeFieldContainer[_common_pb2.TransferOutcome]
    queued_s: float
    hit_tokens: int
    def __init__(self, prefills: _Optional[_Iterable[_Union[_common_pb2.PrefillOutcome, _Mapping]]] = ..., transfers: _Optional[_Iterable[_Union[_common_pb2.TransferOutcome, _Mapping]]] = ..., queued_s: _Optional[float] = ..., hit_tokens: _Optional[int] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("request_id", "tokens_le32", "key_seed", "sources", "max_output_tokens", "sampling", "ignore_eos")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LE32_FIELD_NUMBER: _ClassVar[int]
    KEY_SEED_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tokens_le32: bytes
    key_seed: int
    sources: _containers.RepeatedCompositeFieldContainer[BlockSource]
    max_output_tokens: int
    sampling: _common_pb2.Sampling
    ignore_eos: bool
    def __init__(self, request_id: _Optional[str] = ..., tokens_le32: _Optional[bytes] = ..., key_seed: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[BlockSource, _Mapping]]] = ..., max_output_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.Sampling, _Mapping]] = ..., ignore_eos: _Optional[bool] = ...) -> None: ...

class DecodeReply(_message.Message):
    __slots__ = ("accepted", "tokens", "summary")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    tokens: NewTokens
    summary: DecodeSummary
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., tokens: _Optional[_Union[NewTokens, _Mapping]] = ..., summary: _Optional[_Union[DecodeSummary, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NewTokens(_message.Message):
    __slots__ = ("ids", "start", "finish_reason")
    IDS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    start: DecodeStart
    finish_reason: str
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., start: _Optional[_Union[DecodeStart, _Mapping]] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class DecodeStart(_message.Message):
    __slots__ = ("prefills", "transfers", "queued_s", "hit_tokens", "computed_tokens")
    PREFILLS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prefills: _containers.RepeatedCompositeFieldContainer[_common_pb2.PrefillOutcome]
    transfers: _containers.RepeatedCompositeFieldContainer[_common_pb2.TransferOutcome]
    queued_s: float
    hit_tokens: int
    computed_tokens: int
    def __init__(self, prefills: _Optional[_Iterable[_Union[_common_pb2.PrefillOutcome, _Mapping]]] = ..., transfers: _Optional[_Iterable[_Union[_common_pb2.TransferOutcome, _Mapping]]] = ..., queued_s: _Optional[float] = ..., hit_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ...) -> None: ...

class DecodeSummary(_message.Message):
    __slots__ = ("finish_reason", "output_tokens")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    finish_reason: str
    output_tokens: int
    def __init__(self, finish_reason: _Optional[str] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class FetchBlocksRequest(_message.Message):
    __slots__ = ("worker_id", "request_id", "kv_format", "site", "keys", "order", "handover", "inline_frames")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KV_FORMAT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    INLINE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    request_id: str
    kv_format: str
    site: str
    keys: _containers.RepeatedScalarFieldContainer[int]
    order: BlockOrder
    handover: bool
    inline_frames: bool
    def __init__(self, worker_id: _Optional[str] = ..., request_id: _Optional[str] = ..., kv_format: _Optional[str] = ..., site: _Optional[str] = ..., keys: _Optional[_Iterable[int]] = ..., order: _Optional[_Union[BlockOrder, str]] = ..., handover: _Optional[bool] = ..., inline_frames: _Optional[bool] = ...) -> None: ...

class FetchBlocksReply(_message.Message):
    __slots__ = ("offer", "frame")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    offer: BlockOffer
    frame: BlockFrame
    def __init__(self, offer: _Optional[_Union[BlockOffer, _Mapping]] = ..., frame: _Optional[_Union[BlockFrame, _Mapping]] = ...) -> None: ...

class BlockOffer(_message.Message):
    __slots__ = ("host", "port", "token", "kv_format", "blocks", "layers", "layer_block_bytes")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    KV_FORMAT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LAYER_BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    token: bytes
    kv_format: str
    blocks: int
    layers: int
    layer_block_bytes: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., token: _Optional[bytes] = ..., kv_format: _Optional[str] = ..., blocks: _Optional[int] = ..., layers: _Optional[int] = ..., layer_block_bytes: _Optional[int] = ...) -> None: ...

class BlockFrame(_message.Message):
    __slots__ = ("header", "payload")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    payload: bytes
    def __init__(self, header: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...
