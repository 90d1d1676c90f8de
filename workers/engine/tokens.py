"""A sequence with its tokens: what a worker that really computes adds to the counts."""

from collections.abc import Sequence as Seq

from homing.router.core.blocks import block_keys, pack_tokens

from .sequence import Sequence


class TokenSequence(Sequence):
    """A request whose tokens are known; keys are made of them, those of the answer's blocks as they become full."""

    __slots__ = ("eos_ids", "key_seed", "tokens")

    def __init__(
        self,
        request_id: str,
        tokens: Seq[int],
        *,
        block_tokens: int,
        key_seed: int,
        max_output_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(
            request_id,
            len(tokens),
            keys=block_keys(pack_tokens(tokens), block_tokens, seed=key_seed),
            block_tokens=block_tokens,
            max_output_tokens=max_output_tokens,
        )
        self.tokens = list(tokens)
        self.key_seed = key_seed
        self.eos_ids = eos_ids

    def take(self, token: int) -> None:
        """One more token of the answer; ends the sequence at an end-of-sequence token or at its length."""
        self.tokens.append(token)
        self.generate()
        if token in self.eos_ids:
            self.finish_reason = "stop"

    def newly_full(self) -> range:
        """Positions of blocks that became whole since last asked, keyed by what was generated meanwhile."""
        full = self.present // self.block_tokens
        if full > len(self.keys):
            start = len(self.keys) * self.block_tokens
            parent = self.keys[-1] if self.keys else None
            packed = pack_tokens(self.tokens[start : full * self.block_tokens])
            self.keys += block_keys(packed, self.block_tokens, seed=self.key_seed, parent=parent)
        return super().newly_full()
