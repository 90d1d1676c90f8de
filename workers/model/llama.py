"""A Llama decoder over a paged KV cache: RMSNorm, RoPE, grouped-query attention, SwiGLU.

Rule 1: the linear layers see all tokens of all sequences at once; attention alone knows who is who.
Rule 2: K and V are written into the paged cache before they are read, so a chunk reads itself and its
prefix in the same way, and how a prompt is cut into chunks does not change its result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from homing.workers.engine.step import StepPlan

from .batch import Batch, DecodeGroup, PrefillChunk, build_batch
from .config import LlamaConfig
from .kv import KvTensor
from .linear import linear_for
from .rope import rope_table, rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer; matrices are `[outputs, inputs]` as Hugging Face stores them."""

    input_norm: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    post_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


class LlamaModel:
    """Computes step plans. Holds weights only: every sequence's state is in the `KvTensor` handed in."""

    def __init__(self, config: LlamaConfig, weights: Mapping[str, torch.Tensor]) -> None:
        """`weights` by Hugging Face's names, of one dtype and device. `ValueError` names what is amiss."""
        expected = weight_shapes(config)
        for name, shape in expected.items():
            if name not in weights:
                raise ValueError(f"weights: {name!r} is missing: is the checkpoint complete?")
            if tuple(weights[name].shape) != shape:
                raise ValueError(f"weights: {name!r} is {tuple(weights[name].shape)}, the config says {shape}")
        self.config = config
        self._embedding = weights["model.embed_tokens.weight"]
        self._norm = weights["model.norm.weight"]
        self._head = self._embedding if config.tied_embeddings else weights["lm_head.weight"]
        self._layers = tuple(_layer(weights, index) for index in range(config.layers))
        self._rope = rope_table(config, self.device).to(self.dtype).unsqueeze(2)
        self._linear = linear_for(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights, and of the KV that this model writes."""
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are and the computing is done."""
        return self._embedding.device

    @torch.inference_mode()
    def forward(self, plan: StepPlan, kv: KvTensor, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Compute a plan in one pass: float32 logits `[steps with sample, vocab_tokens]`, in plan order.

        `on_layer(l)` is called in rising order of `l`, each when the bytes of layer `l` of every sequence of
        the plan are in `kv`; what it raises ends the pass. Raises `ValueError` if plan or cache do not fit.
        """
        if kv.dtype != self.dtype or kv.device != self.device:
            raise ValueError(
                f"the KV cache is {kv.dtype} on {kv.device}, the model {self.dtype} on {self.device}: "
                "create the cache with LoadedModel.kv_tensor"
            )
        batch = build_batch(plan, self.config, kv)
        rope = (self._rope[0, batch.positions], self._rope[1, batch.positions])
        hidden = self._embedding[batch.tokens]
        for index, layer in enumerate(self._layers):
            normed = self._rms_norm(hidden, layer.input_norm)
            q = self._project_and_store(normed, index, rope, batch, kv)
            if on_layer is not None:
                if kv.device.type == "cuda":
                    torch.cuda.current_stream(kv.device).synchronize()
                on_layer(index)
            hidden = hidden + self._linear(self._attend(q, index, batch, kv), layer.o)
            hidden = hidden + self._mlp(self._rms_norm(hidden, layer.post_norm), layer)
        last = self._rms_norm(hidden[batch.sampled], self._norm)
        return self._linear(last, self._head).float()

    def _project_and_store(
        self,
        normed: torch.Tensor,
        index: int,
        rope: tuple[torch.Tensor, torch.Tensor],
        batch: Batch,
        kv: KvTensor,
    ) -> torch.Tensor:
        """Write K and V of the batch's tokens; return Q as `[tokens, heads, head_dim]`."""
        layer, config = self._layers[index], self.config
        q = self._linear(normed, layer.q).view(-1, config.heads, config.head_dim)
        k = self._linear(normed, layer.k).view(-1, config.kv_heads, config.head_dim)
        v = self._linear(normed, layer.v)
        written = torch.cat((rotate(k, *rope).flatten(1), v))
        rows = kv.kv.view(-1, config.kv_heads * config.head_dim)
        rows[2 * index * kv.block_tokens :].index_copy_(0, batch.slots, written)
        return rotate(q, *rope)

    def _attend(self, q: torch.Tensor, index: int, batch: Batch, kv: KvTensor) -> torch.Tensor:
        """`[tokens, heads, head_dim]` queries to `[tokens, heads x head_dim]` attention outputs."""
        out = torch.empty_like(q)
        blocks = kv.kv.view(-1, kv.block_tokens, self.config.kv_heads, self.config.head_dim)[2 * index :]
        vectors = blocks.view(-1, self.config.head_dim)
        for chunk in batch.prefills:
            out[chunk.rows] = self._attend_prefill(q[chunk.rows], blocks, chunk)
        for group in batch.decodes:
            out[group.rows] = self._attend_decode(q[group.rows], vectors, group)
        return out.flatten(1)

    def _attend_prefill(self, q: torch.Tensor, blocks: torch.Tensor, chunk: PrefillChunk) -> torch.Tensor:
        config = self.config
        paged = blocks.index_select(0, chunk.blocks)
        k, v = paged.view(2, -1, config.kv_heads, config.head_dim)[:, : chunk.end].permute(0, 2, 1, 3)
        # KV heads as the batch and query heads as heads: K and V are then broadcast by stride, not copied.
        grouped = q.view(-1, config.kv_heads, config.group, config.head_dim).permute(1, 2, 0, 3)
        k, v = (side.unsqueeze(1).expand(-1, config.group, -1, -1) for side in (k, v))
        out = functional.scaled_dot_product_attention(grouped, k, v, attn_mask=chunk.mask, is_causal=chunk.mask is None)
        return out.permute(2, 0, 1, 3).reshape(q.shape)

    def _attend_decode(self, q: torch.Tensor, vectors: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        """Batched matrix products over (sequence, KV head), with the query heads of a group as rows."""
        config = self.config
        products = len(q) * config.kv_heads
        k, v = vectors.index_select(0, group.vectors).view(2, products, -1, config.head_dim)
        scores = torch.bmm(q.view(products, config.group, config.head_dim), k.mT).mul_(config.head_dim**-0.5)
        masked = scores.view(len(q), config.kv_heads, config.group, -1) + group.mask
        shares = masked.softmax(-1, dtype=torch.float32).to(v.dtype)
        return torch.bmm(shares.view(scores.shape), v).view(q.shape)

    def _mlp(self, normed: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        gated = functional.silu(self._linear(normed, layer.gate)).mul_(self._linear(normed, layer.up))
        return self._linear(gated, layer.down)

    def _rms_norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.config.rms_eps)


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint by its Hugging Face name, in the order in which a pass reads them."""
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_tokens, config.hidden)}
    for index in range(config.layers):
        layer = {
            "input_layernorm": (config.hidden,),
            "self_attn.q_proj": (q_width, config.hidden),
            "self_attn.k_proj": (kv_width, config.hidden),
            "self_attn.v_proj": (kv_width, config.hidden),
            "self_attn.o_proj": (config.hidden, q_width),
            "post_attention_layernorm": (config.hidden,),
            "mlp.gate_proj": (config.intermediate, config.hidden),
            "mlp.up_proj": (config.intermediate, config.hidden),
            "mlp.down_proj": (config.hidden, config.intermediate),
        }
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (config.hidden,)
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_tokens, config.hidden)
    return shapes


def _layer(weights: Mapping[str, torch.Tensor], index: int) -> LayerWeights:
    def of(name: str) -> torch.Tensor:
        return weights[f"model.layers.{index}.{name}.weight"]

    return LayerWeights(
        input_norm=of("input_layernorm"),
        q=of("self_attn.q_proj"),
        k=of("self_attn.k_proj"),
        v=of("self_attn.v_proj"),
        o=of("self_attn.o_proj"),
        post_norm=of("post_attention_layernorm"),
        gate=of("mlp.gate_proj"),
        up=of("mlp.up_proj"),
        down=of("mlp.down_proj"),
    )
