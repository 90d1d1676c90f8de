"""Paged, chunked and batched forward passes against full attention over whole sequences."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.workers.engine.step import SequenceStep, StepPlan
from homing.workers.model.config import RopeScaling
from homing.workers.model.kv import KvTensor
from homing.workers.model.llama import LlamaModel
from homing.workers.model.rope import rope_table
from homing.workers.model.tiny import TINY_CONFIG, random_weights
from homing.workers.model.weights import load_model

# Each is a shape that the others are not: grouped, multi-head, multi-query, an untied head, wide heads.
SHAPES = [
    TINY_CONFIG,
    replace(TINY_CONFIG, kv_heads=4, layers=2),
    replace(TINY_CONFIG, kv_heads=1, layers=1),
    replace(TINY_CONFIG, tied_embeddings=False, layers=2, rope_theta=500.0),
    replace(TINY_CONFIG, heads=6, kv_heads=3, head_dim=32, layers=2),
]
WEIGHTS = [random_weights(config, seed=number) for number, config in enumerate(SHAPES)]


def step(tokens, start=0, table=(0, 1, 2, 3), sample=True, request_id="r"):
    return SequenceStep(
        request_id=request_id, tokens=tuple(tokens), start=start, block_table=tuple(table), sample=sample
    )


def plan(*steps):
    return StepPlan(steps=steps)


def cache(config, blocks, block_tokens):
    return KvTensor(config, blocks=blocks, block_tokens=block_tokens, weights_fingerprint="test")


@settings(max_examples=100, deadline=None)
@given(
    shape=st.integers(0, len(SHAPES) - 1),
    block_tokens=st.sampled_from([1, 3, 8, 16]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_any_batching_chunking_and_paging_equals_full_attention(shape, block_tokens, lengths, seed):
    random = Random(seed)
    config = SHAPES[shape]
    model = LlamaModel(config, WEIGHTS[shape])
    prompts = [[random.randrange(config.vocab_tokens) for _ in range(length)] for length in lengths]
    needed = [-(-length // block_tokens) for length in lengths]
    kv = cache(config, sum(needed) + 3, block_tokens)
    kv.kv.normal_(generator=torch.Generator().manual_seed(1))  # a recycled cache is full of others' numbers
    order = random.sample(range(kv.blocks), kv.blocks)
    tables = [[order.pop() for _ in range(count)] for count in needed]
    wanted = [reference_logits(config, WEIGHTS[shape], prompt) for prompt in prompts]
    done = [0] * len(prompts)
    while any(start < len(prompt) for start, prompt in zip(done, prompts, strict=True)):
        steps, expected = [], []
        for number in random.sample(range(len(prompts)), len(prompts)):
            left = len(prompts[number]) - done[number]
            take = min(left, random.choice([0, 1, 1, 2, 7, 40]))
            if take == 0:
                continue
            end = done[number] + take
            sample = random.random() < 0.8
            steps.append(step(prompts[number][done[number] : end], done[number], tables[number], sample))
            expected += [wanted[number][end - 1]] if sample else []
            done[number] = end
        if not steps:
            continue
        logits = model.forward(plan(*steps), kv)
        assert logits.shape == (len(expected), config.vocab_tokens)
        assert logits.dtype == torch.float32
        if expected:
            assert (logits - torch.stack(expected)).abs().max() < 1e-4


def test_a_pass_writes_only_the_slots_of_its_tokens(tiny):
    kv = tiny.kv_tensor(blocks=4, block_tokens=4)
    kv.kv.fill_(7.0)
    tiny.model.forward(plan(step(range(5), 0, (2, 1))), kv)
    changed = (kv.kv != 7.0).flatten(4).all(-1).all(2).all(1)  # [blocks, block_tokens], in every layer
    untouched = (kv.kv == 7.0).flatten(4).all(-1).all(2).all(1)
    assert changed.tolist() == [[False] * 4, [True, False, False, False], [True] * 4, [False] * 4]
    assert (untouched | changed).all()


def test_on_layer_comes_in_order_when_the_bytes_of_the_layer_are_there(tiny):
    tokens = (5, 6, 7, 8, 9, 10)
    whole = tiny.kv_tensor(blocks=4, block_tokens=4)
    tiny.model.forward(plan(step(tokens, 0, (3, 0))), whole)
    kv = tiny.kv_tensor(blocks=4, block_tokens=4)
    seen = []

    def on_layer(layer):
        seen.append(layer)
        for block in (3, 0):
            assert kv.view(block, layer, 1) == whole.view(block, layer, 1)
            later = kv.layers - layer - 1
            # The handover sends a layer when told of it, so being told early would send zeros.
            assert later == 0 or not any(kv.view(block, layer + 1, later))

    tiny.model.forward(plan(step(tokens, 0, (3, 0))), kv, on_layer)
    assert seen == [0, 1, 2, 3]


def test_kv_moved_to_another_worker_gives_the_same_logits(tiny):
    """The core of I8: a prefix computed elsewhere, copied as bytes into other blocks, changes nothing."""
    tokens = tuple(range(40, 60))
    source, target = tiny.kv_tensor(blocks=8, block_tokens=4), tiny.kv_tensor(blocks=8, block_tokens=4)
    whole = tiny.model.forward(plan(step(tokens, 0, (0, 1, 2, 3, 4))), source)
    for block, place in enumerate((7, 2, 5)):
        target.view(place)[:] = source.view(block)
    moved = tiny.model.forward(plan(step(tokens[12:], 12, (7, 2, 5, 0, 1))), target)
    assert (whole - moved).abs().max() < 1e-4


def test_bfloat16_computes_close_to_float32(tiny):
    half = load_model("tiny", dtype="bfloat16")
    steps = plan(step(range(30), table=(0, 1)), step((3,), table=(2,)))
    exact = tiny.model.forward(steps, tiny.kv_tensor(blocks=4, block_tokens=16))
    rounded = half.model.forward(steps, half.kv_tensor(blocks=4, block_tokens=16))
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.2


def test_llama3_scaling_leaves_high_frequencies_and_slows_low_ones():
    scaling = RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_context_tokens=64)
    config = replace(TINY_CONFIG, head_dim=64, rope_theta=10_000.0)
    plain = rope_table(config)[0, 1, :32].acos()
    scaled = rope_table(replace(config, rope_scaling=scaling))[0, 1, :32].acos()
    turns = 64 * plain / 6.283185
    assert torch.allclose(scaled[turns > 4], plain[turns > 4])
    low = (turns < 1) & (plain > 1e-2)  # cosines of smaller angles have no digits left in float32
    assert low.any()
    assert torch.allclose(scaled[low], plain[low] / 8, rtol=0.05)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (step((1,), start=8192, table=range(513)), "context of 8192"),
        (step((512,)), "vocabulary of 512"),
        (step((-1,)), "vocabulary of 512"),
        (step(range(17), table=(0,)), "do not reach position 16"),
        (step((1,), table=(4,)), "outside the 4 blocks"),
        (step((1,), table=(-1,)), "outside the 4 blocks"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_anything_is_written(tiny, bad, message):
    kv = tiny.kv_tensor(blocks=4, block_tokens=16)
    good = step((1, 2, 3), request_id="good")
    with pytest.raises(ValueError, match=f"'bad'.*{message}"):
        tiny.model.forward(plan(good, replace(bad, request_id="bad")), kv)
    assert not kv.kv.any()


def test_an_empty_plan_is_refused(tiny):
    with pytest.raises(ValueError, match="no steps"):
        tiny.model.forward(plan(), tiny.kv_tensor(blocks=1, block_tokens=16))


def test_a_cache_of_another_number_format_is_refused(tiny):
    kv = KvTensor(tiny.config, blocks=1, block_tokens=16, weights_fingerprint="", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"bfloat16.*float32"):
        tiny.model.forward(plan(step((1,), table=(0,))), kv)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name(change):
    weights = dict(WEIGHTS[0])
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][:, :5]
    with pytest.raises(ValueError, match=name):
        LlamaModel(TINY_CONFIG, weights)


def reference_logits(config, weights, tokens):
    """A second, naive Llama in float64 that shares no code with the model: `[tokens, vocab_tokens]`."""

    def of(name):
        return weights[f"{name}.weight"].double()

    x = of("model.embed_tokens")[torch.tensor(tokens)]
    future = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
    for index in range(config.layers):
        layer = f"model.layers.{index}"
        h = norm(x, of(f"{layer}.input_layernorm"), config.rms_eps)
        q, k, v = (heads(h @ of(f"{layer}.self_attn.{part}_proj").T, config) for part in "qkv")
        q, k = rope(q, config), rope(k, config)
        outputs = []
        for head in range(config.heads):
            kv_head = head * config.kv_heads // config.heads
            scores = q[head] @ k[kv_head].T / config.head_dim**0.5
            outputs.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ v[kv_head])
        x = x + torch.cat(outputs, -1) @ of(f"{layer}.self_attn.o_proj").T
        h = norm(x, of(f"{layer}.post_attention_layernorm"), config.rms_eps)
        gate = h @ of(f"{layer}.mlp.gate_proj").T
        x = x + (gate * gate.sigmoid() * (h @ of(f"{layer}.mlp.up_proj").T)) @ of(f"{layer}.mlp.down_proj").T
    x = norm(x, of("model.norm"), config.rms_eps)
    return x @ (of("model.embed_tokens") if config.tied_embeddings else of("lm_head")).T


def norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def heads(x, config):
    return x.unflatten(-1, (-1, config.head_dim)).transpose(0, 1)


def rope(x, config):
    """Each pair (i, i + half) turned by its angle, as complex numbers."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)
