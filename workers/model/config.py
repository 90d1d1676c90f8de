"""The shape of a Llama-architecture model, and what two workers must share to exchange KV.

Rule 1: this module needs no torch, so that anything may ask for sizes and formats.
Rule 2: what a config asks for and this package does not compute is refused by name, never ignored.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class UnsupportedModelError(ValueError):
    """The files are readable, but ask for something that this package does not compute."""


def dtype_name(dtype: object) -> str:
    """The bare name of a torch dtype or of a string such as `"float32"`.

    >>> dtype_name("torch.bfloat16")
    'bfloat16'
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(DTYPE_BYTES)}: choose one of those")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's scaling of RoPE frequencies, Hugging Face's `rope_scaling` of type `llama3`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"rope_scaling: high_freq_factor {self.high_freq_factor} must be above "
                f"low_freq_factor {self.low_freq_factor}: check config.json"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """Everything that decides what a Llama decoder computes, apart from its weights."""

    vocab_tokens: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context_tokens: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-5
    tied_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (
            "vocab_tokens",
            "hidden",
            "layers",
            "heads",
            "kv_heads",
            "intermediate",
            "context_tokens",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive; check config.json")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}; check config.json")
        if self.head_dim <= 0 or self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be positive and even for RoPE; check config.json")

    @property
    def group(self) -> int:
        """Query heads that share one KV head (grouped-query attention)."""
        return self.heads // self.kv_heads

    def kv_bytes_per_token(self, dtype: object) -> int:
        """Bytes of K and V that one token takes over all layers.

        >>> LlamaConfig(vocab_tokens=49152, hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64,
        ...             intermediate=1536, context_tokens=8192).kv_bytes_per_token("bfloat16")
        23040
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[dtype_name(dtype)]

    def kv_format(self, block_tokens: int, dtype: object, weights_fingerprint: str) -> str:
        """The string that two workers must share for their KV blocks to be interchangeable.

        Layout (layers x KV heads x head size), number format, block size, and the identity of the weights:
        equal shapes from other weights are a valid layout of wrong numbers.
        """
        shape = f"{self.layers}x{self.kv_heads}x{self.head_dim}"
        return f"llama/{shape}/{dtype_name(dtype)}/b{block_tokens}/{weights_fingerprint}"

    def canonical(self) -> bytes:
        """The config as bytes that are equal on every machine, for fingerprints."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "LlamaConfig":
        """Read a Hugging Face `config.json`.

        Raises `UnsupportedModelError` naming the setting that is not supported, `ValueError` for one missing.
        """
        _refuse_unsupported(raw)
        heads = _required(raw, "num_attention_heads")
        hidden = _required(raw, "hidden_size")
        # transformers 5 moved theta and scaling into `rope_parameters`.
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        return cls(
            vocab_tokens=_required(raw, "vocab_size"),
            hidden=hidden,
            layers=_required(raw, "num_hidden_layers"),
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or hidden // heads,
            intermediate=_required(raw, "intermediate_size"),
            context_tokens=_required(raw, "max_position_embeddings"),
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
            rope_scaling=_rope_scaling(rope),
            rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            bos_id=raw.get("bos_token_id"),
            eos_ids=token_ids(raw.get("eos_token_id")),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` from which `from_hf` reads an equal config."""
        raw: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "vocab_size": self.vocab_tokens,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.context_tokens,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_eps,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": self.bos_id,
            "eos_token_id": list(self.eos_ids),
            "torch_dtype": "float32",
        }
        if self.rope_scaling is not None:
            raw["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": self.rope_scaling.factor,
                "low_freq_factor": self.rope_scaling.low_freq_factor,
                "high_freq_factor": self.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": self.rope_scaling.original_context_tokens,
            }
        return raw


def token_ids(raw: int | list[int] | None) -> tuple[int, ...]:
    """Token ids as Hugging Face writes them: none, one, or a list."""
    if raw is None:
        return ()
    return (raw,) if isinstance(raw, int) else tuple(raw)


def _required(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int):
        raise ValueError(f"config.json: {key!r} is {value!r}, an integer is required: is the file complete?")  # noqa: TRY004 - one error type for a bad file
    return value


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    architectures = raw.get("architectures") or []
    if raw.get("model_type") != "llama" or architectures not in ([], ["LlamaForCausalLM"]):
        raise UnsupportedModelError(
            f"model_type {raw.get('model_type')!r} with architectures {architectures} is not supported: "
            "use a model of architecture LlamaForCausalLM"
        )
    supported = {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_interleaved": (False,),
        "partial_rotary_factor": (1.0,),
        "quantization_config": (None,),
    }
    for key, values in supported.items():
        if key in raw and raw[key] not in values:
            raise UnsupportedModelError(f"config.json: {key}={raw[key]!r} is not supported, only {values[0]!r} is")


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UnsupportedModelError(f"rope scaling of type {kind!r} is not supported, only 'llama3' and none are")
    try:
        return RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_context_tokens=int(rope["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise ValueError(f"config.json: rope scaling of type 'llama3' lacks {error}") from error
