"""The shape of an engine's KV cache, read off its tensors, and the name under which two engines compare theirs.

vLLM shows each layer's cache as a view [blocks, heads, tokens, width], whatever its layout in memory; `width` holds
keys and values. A block travels as [layers, heads, tokens, width], so engines of different layouts understand each
other.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


class UnsupportedCacheError(ValueError):
    """The engine's cache has a shape that this connector does not move; the engine works without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGeometry:
    """One block of every layer."""

    layers: int
    heads: int
    block_tokens: int
    width: int
    dtype: torch.dtype

    @property
    def layer_block_bytes(self) -> int:
        """Bytes of one layer of one block."""
        return self.heads * self.block_tokens * self.width * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""
        return self.layers * self.layer_block_bytes

    def format(self, weights: str) -> str:
        """What two engines must share for their KV to be interchangeable: shape, number format, block size, weights."""
        shape = f"{self.layers}x{self.heads}x{self.width}"
        return f"vllm/{shape}/{str(self.dtype).removeprefix('torch.')}/b{self.block_tokens}/{weights}"


def geometry_of(kv_caches: Mapping[str, torch.Tensor], block_tokens: int) -> KvGeometry:
    """Read the shape off the tensors that vLLM registers, one for each layer.

    Raises UnsupportedCacheError for layers of different shapes (hybrid models), for other ranks (MLA, Mamba), and for
    blocks that are not `block_tokens` long.
    """
    if not kv_caches:
        raise UnsupportedCacheError("the engine has no KV cache; nothing can be moved")
    shapes = {(tuple(cache.shape), cache.dtype) for cache in kv_caches.values()}
    if len(shapes) > 1:
        raise UnsupportedCacheError(
            f"layers of different shapes {sorted(map(str, shapes))}: models whose layers are alike"
        )
    shape, dtype = shapes.pop()
    if len(shape) != 4:
        raise UnsupportedCacheError(
            f"a layer's cache has the shape {shape}; [blocks, heads, tokens, width] is supported"
        )
    _, heads, tokens, width = shape
    if dtype.itemsize not in {1, 2, 4, 8}:
        raise UnsupportedCacheError(f"numbers of {dtype.itemsize} bytes: 1, 2, 4 or 8 are supported")
    if tokens != block_tokens:
        raise UnsupportedCacheError(
            f"the kernel's blocks hold {tokens} tokens and the engine's {block_tokens}: choose --block-size {tokens}"
        )
    return KvGeometry(layers=len(kv_caches), heads=heads, block_tokens=tokens, width=width, dtype=dtype)
