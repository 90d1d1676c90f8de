from homing.protos import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompt", "max_output_tokens", "ttft_deadline_s", "session", "tenant", "priority", "origin", "lora", "tenant_salt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    TENANT_SALT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt: _common_pb2.Prompt
    max_output_tokens: int
    ttft_deadline_s: float
    session: str
    tenant: str
    priority: int
    origin: str
    lora: str
    tenant_salt: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., max_output_tokens: _Optional[int] = ..., ttft_deadline_s: _Optional[float] = ..., session: _Optional[str] = ..., tenant: _Optional[str] = ..., priority: _Optional[int] = ..., origin: _Optional[str] = ..., lora: _Optional[str] = ..., tenant_salt: _Optional[str] = ...) -> None: ...

class RouteReply(_message.Message):
    __slots__ = ("request_id", "decision", "refusal")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    decision: _common_pb2.Decision
    refusal: Refusal
    def __init__(self, request_id: _Optional[str] = ..., decision: _Optional[_Union[_common_pb2.Decision, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message", "retry_after_s")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    retry_after_s: float
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request", "sampling", "ignore_eos")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    request: RouteRequest
    sampling: _common_pb2.Sampling
    ignore_eos: bool
    def __init__(self, request: _Optional[_Union[RouteRequest, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.Sampling, _Mapping]] = ..., ignore_eos: _Optional[bool] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("decision", "tokens", "summary")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    decision: _common_pb2.Decision
    tokens: Tokens
    summary: Summary
    def __init__(self, decision: _Optional[_Union[_common_pb2.Decision, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., summary: _Optional[_Union[Summary, _Mapping]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("ids", "text")
    IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("request_id", "prompt_tokens", "output_tokens", "finish_reason", "predicted_ttft_s", "ttft_s", "e2e_s", "retries", "transfers", "prefills", "computed_tokens", "hit_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    E2E_S_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    PREFILLS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    predicted_ttft_s: float
    ttft_s: float
    e2e_s: float
    retries: int
    transfers: _containers.RepeatedCompositeFieldContainer[_common_pb2.TransferOutcome]
    prefills: _containers.RepeatedCompositeFieldContainer[_common_pb2.PrefillOutcome]
    computed_tokens: int
    hit_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., finish_reason: _Optional[str] = ..., predicted_ttft_s: _Optional[float] = ..., ttft_s: _Optional[float] = ..., e2e_s: _Optional[float] = ..., retries: _Optional[int] = ..., transfers: _Optional[_Iterable[_Union[_common_pb2.TransferOutcome, _Mapping]]] = ..., prefills: _Optional[_Iterable[_Union[_common_pb2.PrefillOutcome, _Mapping]]] = ..., computed_tokens: _Optional[int] = ..., hit_tokens: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("request_id", "first_token", "ended", "broke")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    BROKE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    first_token: FirstTokenSeen
    ended: Ended
    broke: DispatchBroke
    def __init__(self, request_id: _Optional[str] = ..., first_token: _Optional[_Union[FirstTokenSeen, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., broke: _Optional[_Union[DispatchBroke, _Mapping]] = ...) -> None: ...

class FirstTokenSeen(_message.Message):
    __slots__ = ("ttft_s",)
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    ttft_s: float
    def __init__(self, ttft_s: _Optional[float] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("cancelled", "output_tokens")
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    output_tokens: int
    def __init__(self, cancelled: _Optional[bool] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class DispatchBroke(_message.Message):
    __slots__ = ("worker", "reason")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    worker: str
    reason: str
    def __init__(self, worker: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("decision", "refusal")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    decision: _common_pb2.Decision
    refusal: Refusal
    def __init__(self, decision: _Optional[_Union[_common_pb2.Decision, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainReply(_message.Message):
    __slots__ = ("decisions", "text")
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Decision]
    text: str
    def __init__(self, decisions: _Optional[_Iterable[_Union[_common_pb2.Decision, _Mapping]]] = ..., text: _Optional[str] = ...) -> None: ...

class GetFleetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetFleetReply(_message.Message):
    __slots__ = ("policy", "workers", "links", "requests_waiting", "requests_in_flight", "site")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    policy: str
    workers: _containers.RepeatedCompositeFieldContainer[WorkerView]
    links: _containers.RepeatedCompositeFieldContainer[LinkView]
    requests_waiting: int
    requests_in_flight: int
    site: str
    def __init__(self, policy: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerView, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[LinkView, _Mapping]]] = ..., requests_waiting: _Optional[int] = ..., requests_in_flight: _Optional[int] = ..., site: _Optional[str] = ...) -> None: ...

class WorkerView(_message.Message):
    __slots__ = ("id", "model", "role", "site", "address", "draining", "running_requests", "queue_s", "cached_blocks", "torn_blocks", "kv_blocks_used", "kv_blocks_max", "prefill_a_s", "prefill_b_s", "prefill_q_s", "prefill_samples", "silent_s", "decode_step_s", "kv_bytes_per_token")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TORN_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_MAX_FIELD_NUMBER: _ClassVar[int]
    PREFILL_A_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_B_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_Q_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_STEP_S_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    role: str
    site: str
    address: str
    draining: bool
    running_requests: int
    queue_s: float
    cached_blocks: int
    torn_blocks: int
    kv_blocks_used: int
    kv_blocks_max: int
    prefill_a_s: float
    prefill_b_s: float
    prefill_q_s: float
    prefill_samples: int
    silent_s: float
    decode_step_s: float
    kv_bytes_per_token: int
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., role: _Optional[str] = ..., site: _Optional[str] = ..., address: _Optional[str] = ..., draining: _Optional[bool] = ..., running_requests: _Optional[int] = ..., queue_s: _Optional[float] = ..., cached_blocks: _Optional[int] = ..., torn_blocks: _Optional[int] = ..., kv_blocks_used: _Optional[int] = ..., kv_blocks_max: _Optional[int] = ..., prefill_a_s: _Optional[float] = ..., prefill_b_s: _Optional[float] = ..., prefill_q_s: _Optional[float] = ..., prefill_samples: _Optional[int] = ..., silent_s: _Optional[float] = ..., decode_step_s: _Optional[float] = ..., kv_bytes_per_token: _Optional[int] = ...) -> None: ...

class LinkView(_message.Message):
    __slots__ = ("source", "target", "rtt_s", "bytes_per_s", "samples", "flows")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    RTT_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    rtt_s: float
    bytes_per_s: float
    samples: int
    flows: int
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., rtt_s: _Optional[float] = ..., bytes_per_s: _Optional[float] = ..., samples: _Optional[int] = ..., flows: _Optional[int] = ...) -> None: ...
