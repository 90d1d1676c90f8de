"""Rotary position embedding in Hugging Face's half-rotation form.

Su et al. 2021 (https://arxiv.org/abs/2104.09864); the scaling is Llama 3.1's, as in Hugging Face's
`modeling_rope_utils.py`.
"""

import math

import torch

from .config import LlamaConfig, RopeScaling


def rope_table(config: LlamaConfig, device: torch.device | str = "cpu") -> torch.Tensor:
    """Cosines and signed sines of every position: float32 `[2, context_tokens, head_dim]`.

    The first half of the sines is negative, which makes `rotate` one roll and two multiplications.
    """
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=device) / config.head_dim
    frequencies = config.rope_theta**-half
    if config.rope_scaling is not None:
        frequencies = _scaled(frequencies, config.rope_scaling)
    positions = torch.arange(config.context_tokens, dtype=torch.float64, device=device)
    angles = torch.outer(positions, frequencies)
    cosines, sines = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cosines, cosines), -1), torch.cat((-sines, sines), -1))).float()


def rotate(vectors: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate `[tokens, heads, head_dim]` by `[tokens, 1, head_dim]` cosines and signed sines."""
    swapped = vectors.roll(vectors.shape[-1] // 2, dims=-1)
    return torch.addcmul(vectors * cosines, swapped, sines)


def _scaled(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Slow the frequencies whose wavelength exceeds the original context, and blend those near it."""
    turns = scaling.original_context_tokens * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies
