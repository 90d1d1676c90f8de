"""A small random model that needs no files: for tests, demos and load runs where the text does not matter."""

import torch
import xxhash

from .config import LlamaConfig
from .llama import weight_shapes

TINY_CONFIG = LlamaConfig(
    vocab_tokens=512,
    hidden=64,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=176,
    context_tokens=8192,
    tied_embeddings=True,
    bos_id=256,
    eos_ids=(257,),
)


def random_weights(config: LlamaConfig, seed: int) -> dict[str, torch.Tensor]:
    """Float32 weights of any config, a function of the seed alone.

    Matrices are scaled to keep the variance of their inputs; norms are ones with a little noise.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = noise * shape[-1] ** -0.5 if len(shape) == 2 else 1 + 0.1 * noise
    return weights


def weights_digest(weights: dict[str, torch.Tensor]) -> bytes:
    """XXH3-64 over names and bytes, so that equal seeds count as equal only where they gave equal weights."""
    digest = xxhash.xxh3_64()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.digest()
