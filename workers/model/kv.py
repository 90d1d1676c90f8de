"""The paged KV cache as one tensor, and its bytes as the data plane sends them.

Rule 1: the layout `[blocks, layers, 2, block_tokens, kv_heads, head_dim]` is fixed and contiguous (index 2:
0 = K after RoPE, 1 = V), so a block's range of layers is one contiguous run of bytes.
Rule 2: who may read or write which block, and when, is the cache manager's business, not this class's.
"""

import numpy as np
import torch

from .config import LlamaConfig


class KvTensor:
    """Owns the KV of `blocks` blocks of `block_tokens` tokens each.

    Bytes go in and out in two ways: `view` is zero-copy and needs host memory, and is what the data plane uses, so that
    blocks are moved only between workers whose cache is on the CPU; `dump` and `load` copy, and work on any device.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        blocks: int,
        block_tokens: int,
        weights_fingerprint: str,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        if blocks <= 0 or block_tokens <= 0:
            raise ValueError(f"blocks {blocks} and block_tokens {block_tokens} must both be positive")
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.layers = config.layers
        self.format = config.kv_format(block_tokens, dtype, weights_fingerprint)
        self.block_bytes = config.kv_bytes_per_token(dtype) * block_tokens
        self.layer_block_bytes = self.block_bytes // config.layers
        shape = (blocks, config.layers, 2, block_tokens, config.kv_heads, config.head_dim)
        self._bytes: memoryview | None = None
        # Zeros, because attention multiplies the slots beyond a sequence's end by a weight of 0: what lies
        # there must be finite.
        if torch.device(device).type == "cpu":
            # NumPy leaves zeroing to the kernel, page by page as blocks are first used; torch touches all.
            host = np.zeros(blocks * self.block_bytes, dtype=np.uint8)
            self._bytes = host.data
            self.kv = torch.from_numpy(host).view(dtype).view(shape)
        else:
            self.kv = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the cache, the same as the model's."""
        return self.kv.dtype

    @property
    def device(self) -> torch.device:
        """Where the cache lives."""
        return self.kv.device

    def view(self, block: int, layer_first: int = 0, layer_count: int | None = None) -> memoryview:
        """Writable bytes of `layer_count` layers (all by default) of a block, without a copy.

        Raises `IndexError` outside the tensor and `RuntimeError` for a cache that is not in host memory.
        """
        first, last = self._range(block, layer_first, layer_count)
        if self._bytes is None:
            raise RuntimeError(
                f"the KV cache is on {self.device}, whose memory the host cannot view: stage it with dump() "
                "and load(), or keep the cache on device 'cpu'"
            )
        return self._bytes[first:last]

    def dump(self, block: int, layer_first: int = 0, layer_count: int | None = None) -> bytes:
        """A copy of the bytes that `view` shows, from any device."""
        first, last = self._range(block, layer_first, layer_count)
        return _as_bytes(self.kv)[first:last].cpu().numpy().tobytes()

    def load(
        self,
        data: bytes | bytearray | memoryview,
        block: int,
        layer_first: int = 0,
        layer_count: int | None = None,
    ) -> None:
        """Overwrite the bytes that `view` shows, on any device. `ValueError` if the length is another."""
        first, last = self._range(block, layer_first, layer_count)
        source = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if source.numel() != last - first:
            raise ValueError(f"block {block}: {source.numel()} bytes given, its layers take {last - first}")
        _as_bytes(self.kv)[first:last].copy_(source)

    def _range(self, block: int, layer_first: int, layer_count: int | None) -> tuple[int, int]:
        count = self.layers - layer_first if layer_count is None else layer_count
        if not 0 <= block < self.blocks:
            raise IndexError(f"block {block} is outside the {self.blocks} blocks of this cache")
        if layer_first < 0 or count < 1 or layer_first + count > self.layers:
            raise IndexError(f"layers {layer_first}..{layer_first + count} are not within 0..{self.layers}")
        first = block * self.block_bytes + layer_first * self.layer_block_bytes
        return first, first + count * self.layer_block_bytes


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)
