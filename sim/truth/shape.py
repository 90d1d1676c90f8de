"""How many bytes of KV a model keeps: the arithmetic of its attention layers.

Rule 1: sizes are those of the whole model, over all GPUs that share it, without paging or padding.
Rule 2: what grows with every token and what does not are told apart. Full attention grows. A sliding window grows until
it is full, a recurrent state is there from the first token, and both serve again only a prompt that goes on at exactly
the length at which they were kept.
Rule 3: no tensors, no hardware, no time.
"""

from dataclasses import dataclass

BF16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FullAttention:
    """Layers with multi-head or grouped-query attention: one key and one value per token and KV head.

    Multi-head attention is the case of as many KV heads as heads. `value_dim` is given where values are not as wide as
    keys.
    """

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int | None = None
    element_bytes: int = BF16_BYTES

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token in all these layers."""
        value_dim = self.key_dim if self.value_dim is None else self.value_dim
        return self.layers * self.kv_heads * (self.key_dim + value_dim) * self.element_bytes

    def kv_bytes(self, tokens: int) -> int:
        """KV bytes of a sequence."""
        return tokens * self.token_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Layers with multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    A token leaves one compressed vector of `kv_rank` and one rotary key of `rope_dim`, whatever the number of heads.
    """

    layers: int
    kv_rank: int
    rope_dim: int
    element_bytes: int = BF16_BYTES

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token in all these layers."""
        return self.layers * (self.kv_rank + self.rope_dim) * self.element_bytes

    def kv_bytes(self, tokens: int) -> int:
        """KV bytes of a sequence."""
        return tokens * self.token_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAttention:
    """Full attention over the last `window_tokens` only: what is older is dropped."""

    attention: FullAttention
    window_tokens: int

    @property
    def layers(self) -> int:
        """How many layers attend so."""
        return self.attention.layers

    @property
    def token_bytes(self) -> int:
        """Nothing: a long sequence does not grow here."""
        return 0

    def kv_bytes(self, tokens: int) -> int:
        """KV bytes of a sequence: those of its last window."""
        return self.attention.kv_bytes(min(tokens, self.window_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentState:
    """Layers with linear attention (gated DeltaNet, Kimi Delta Attention): one matrix per head, however long the text.

    `heads` matrices of `key_dim` by `value_dim`, and the last `conv_kernel - 1` inputs, always in bf16, of a short
    convolution over `conv_channels`.
    """

    layers: int
    heads: int
    key_dim: int
    value_dim: int
    conv_channels: int
    conv_kernel: int = 4
    element_bytes: int = 4

    @property
    def token_bytes(self) -> int:
        """Nothing: the state does not grow."""
        return 0

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of the state of a sequence, once it has a token."""
        matrices = self.heads * self.key_dim * self.value_dim * self.element_bytes
        inputs = (self.conv_kernel - 1) * self.conv_channels * BF16_BYTES
        return self.layers * (matrices + inputs) if tokens else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredKv:
    """Layers of which only the sizes are published: a fixed state, and so much per token."""

    layers: int
    token_bytes: int
    state_bytes: int

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of a sequence."""
        return self.state_bytes + tokens * self.token_bytes if tokens else 0


Part = FullAttention | LatentAttention | WindowAttention | RecurrentState | MeasuredKv

FOREVER_TOKENS = 1 << 40
"""A length at which every window is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The layers of a model that keep something, and where their numbers come from."""

    name: str
    parts: tuple[Part, ...]
    source: str

    @property
    def layers(self) -> int:
        """How many layers there are: a KV that is sent layer by layer goes in so many parts."""
        return sum(part.layers for part in self.parts)

    @property
    def bytes_per_token(self) -> int:
        """What every further token of a long sequence adds."""
        return sum(part.token_bytes for part in self.parts)

    @property
    def state_bytes(self) -> int:
        """What a long sequence keeps beside that, however long it is: full windows and recurrent states."""
        return self.kv_bytes(FOREVER_TOKENS) - FOREVER_TOKENS * self.bytes_per_token

    def kv_bytes(self, tokens: int) -> int:
        """Everything that a sequence of so many tokens keeps, in bytes; nothing without tokens."""
        return sum(part.kv_bytes(tokens) for part in self.parts)
