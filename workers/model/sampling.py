"""From logits to a token.

Rule 1: a token is a function of logits, settings, seed and position alone, so that whichever worker computes
it, under whichever plan, the same token comes out (I8).
"""

from dataclasses import dataclass

import torch
import xxhash


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a request wants its tokens chosen; OpenAI's meaning of the fields. Temperature 0 is greedy."""

    temperature: float = 0.0
    seed: int = 0
    top_p: float = 1.0
    top_k: int = 0
    """Choose among this many likeliest tokens; 0 for all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature {self.temperature} must be within 0..100")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} must be 0 (all tokens) or positive")


def sample(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """Choose the token that will stand at `position`, from its `[vocab_tokens]` logits.

    The Gumbel-max trick: adding Gumbel noise and taking the maximum draws from the softmax. The noise depends
    on seed and position only, so rounding differences between workers change the token only in a near tie.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    scores = _keep_top(logits.detach().double().cpu() / sampling.temperature, sampling)
    generator = torch.Generator().manual_seed(_noise_seed(sampling.seed, position))
    uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    return int((scores - (-uniform.clamp_min_(tiny).log()).log()).argmax())


def _keep_top(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Rule out what is outside the `top_k` likeliest, then outside the nucleus of `top_p`."""
    if 0 < sampling.top_k < scores.numel():
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(descending=True)
        shares = ordered.softmax(-1)
        # Mass before a token, so that the token that crosses top_p still belongs.
        outside = order[shares.cumsum(-1) - shares >= sampling.top_p]
        scores = scores.index_fill(0, outside, -torch.inf)
    return scores


def _noise_seed(seed: int, position: int) -> int:
    mixed = xxhash.xxh3_64_intdigest(f"{seed}/{position}".encode())
    return mixed >> 1  # torch takes a signed 64-bit seed
