"""An echo "model" in the place of a Llama, for Homing's own workers: their KV is small, and is really moved.

All of a worker is the real one (`workers/process.py`); only the forward pass is a stopwatch. It needs torch, as the
worker does.

Rule 1: KV says which token stands where, in every layer. An answer is made of what is found there, and a pass that
finds the KV of another prompt fails.
Rule 2: a pass ends its layers one by one, so that a handover streams as it does from a real model.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from homing.router.core.blocks import pack_tokens
from homing.workers.engine.step import SequenceStep, StepPlan
from homing.workers.model.config import LlamaConfig
from homing.workers.model.kv import KvTensor
from homing.workers.model.llama import LlamaModel
from homing.workers.model.tokenizer import ByteTokenizer
from homing.workers.model.weights import LoadedModel

from .settings import StepTimes

LETTERS = 26
LAYER_STEP = 1000
"""What a layer adds to a token in KV; more than any token, so that a misplaced layer shows. Exact in float32."""
FLOAT_BYTES = 4


def answer_after(tokens: Seq[int]) -> int:
    """The token that follows these: a letter."""
    return ord("a") + xxh3_64_intdigest(pack_tokens(tokens)) % LETTERS


def echo_loaded(
    times: StepTimes, *, layers: int = 4, kv_bytes_per_token: int = 128, context_tokens: int = 131_072
) -> LoadedModel:
    """What `WorkerProcess` takes in the place of a loaded model.

    `kv_bytes_per_token` must be a multiple of 16 for each layer: K and V of an even number of floats.
    """
    size, rest = divmod(kv_bytes_per_token, 2 * layers * FLOAT_BYTES)
    if rest or size < 2 or size % 2:
        raise ValueError(f"kv_bytes_per_token: expected a multiple of {layers * 16}, got {kv_bytes_per_token}")
    tokenizer = ByteTokenizer()
    config = LlamaConfig(
        vocab_tokens=tokenizer.vocab_tokens,
        hidden=size,
        layers=layers,
        heads=1,
        kv_heads=1,
        head_dim=size,
        intermediate=1,
        context_tokens=context_tokens,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
    )
    return LoadedModel(
        model=EchoModel(config, times),
        config=config,
        tokenizer=tokenizer,
        fingerprint=xxh3_64_hexdigest(config.canonical() + b"echo"),
        name="echo",
    )


class EchoModel(LlamaModel):
    """Takes the time of a model, and answers with letters that depend on all tokens before them."""

    def __init__(self, config: LlamaConfig, times: StepTimes) -> None:
        # It has no weights, so the constructor of a model that has some is not called.
        self.config = config
        self._times = times

    @property
    def dtype(self) -> torch.dtype:
        """Number format of its KV."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where its KV is."""
        return torch.device("cpu")

    def forward(self, plan: StepPlan, kv: KvTensor, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """See `LlamaModel.forward`. RuntimeError when KV of another prompt is found."""
        layer_s = self._pass_s(plan) / kv.layers
        for step in plan.steps:
            _write(step, kv)
        due_s = time.perf_counter()
        for layer in range(kv.layers):
            due_s += layer_s
            time.sleep(max(0.0, due_s - time.perf_counter()))
            if on_layer is not None:
                on_layer(layer)
        sampling = [step for step in plan.steps if step.sample]
        logits = torch.zeros(len(sampling), self.config.vocab_tokens)
        for row, step in enumerate(sampling):
            logits[row, answer_after(_read(step, kv))] = 1.0
        return logits

    def _pass_s(self, plan: StepPlan) -> float:
        """As `StepTimes.prefill_s` for each chunk of a prompt; a single token is one that is decoded."""
        times, seconds, decoding = self._times, 0.0, 0
        for step in plan.steps:
            if len(step.tokens) > 1:
                seconds += times.prefill_s(step.start, step.end)
            else:
                decoding += 1
        return seconds + (times.decode_s + times.decode_sequence_s * decoding if decoding else 0.0)


def _write(step: SequenceStep, kv: KvTensor) -> None:
    positions = torch.arange(step.start, step.end)
    blocks = torch.tensor(step.block_table)[positions // kv.block_tokens]
    layers = torch.arange(kv.layers).mul(LAYER_STEP).view(1, -1, 1, 1, 1)
    tokens = torch.tensor(step.tokens).view(-1, 1, 1, 1, 1) + 1
    kv.kv[blocks, :, :, positions % kv.block_tokens] = (tokens + layers).to(kv.dtype)


def _read(step: SequenceStep, kv: KvTensor) -> list[int]:
    """All tokens up to a step's end, as KV has them."""
    found = kv.kv[torch.tensor(step.block_table), :, :, :, 0, 0]
    by_layer = found.permute(1, 2, 0, 3).reshape(kv.layers, 2, -1)[:, :, : step.end].long() - 1
    tokens = by_layer - torch.arange(kv.layers).mul(LAYER_STEP).view(-1, 1, 1)
    if not bool((tokens == tokens[0, 0]).all()):
        raise RuntimeError(f"{step.request_id}: its layers hold KV of different prompts")
    own = tokens[0, 0, step.start :].tolist()
    if own != list(step.tokens):
        raise RuntimeError(f"{step.request_id}: its KV is of another prompt")
    read: list[int] = tokens[0, 0].tolist()
    return read
