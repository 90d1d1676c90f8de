"""GGUF files: conversion against the weights that they were written from, and the cache of conversions."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from homing.workers.engine.step import SequenceStep, StepPlan
from homing.workers.model.config import UnsupportedModelError
from homing.workers.model.gguf import cache_directory, converted_directory
from homing.workers.model.gguf_convert import _OTHER_NAMES, _PART_NAMES
from homing.workers.model.llama import LlamaModel
from homing.workers.model.tiny import TINY_CONFIG, random_weights
from homing.workers.model.tokenizer import _byte_of_character
from homing.workers.model.weights import load_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed: run 'make install-demo'")

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_byte_of_character(), "th", "Ġth"]
CONFIG = replace(TINY_CONFIG, vocab_tokens=len(TOKENS), bos_id=1, eos_ids=(2, 0), kv_heads=2)
WEIGHTS = random_weights(CONFIG, seed=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMING_CACHE", str(tmp_path / "cache"))


def interleave(rows, heads):
    """Half-rotation order to ggml's order of neighbours, written head by head and row by row."""
    head_dim = len(rows) // heads
    half = head_dim // 2
    order = [h * head_dim + part * half + i for h in range(heads) for i in range(half) for part in (0, 1)]
    return rows[order]


def write(path, fields=(), tensors=(), quantise=False):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(CONFIG.layers)
    writer.add_context_length(CONFIG.context_tokens)
    writer.add_embedding_length(CONFIG.hidden)
    writer.add_feed_forward_length(CONFIG.intermediate)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_eps)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h", "Ġ th"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for add in fields:
        add(writer)
    names = {theirs: ours for ours, theirs in _OTHER_NAMES.items()}
    for number in range(CONFIG.layers):
        for ours, theirs in _PART_NAMES.items():
            names[f"model.layers.{number}.{theirs}.weight"] = f"blk.{number}.{ours}.weight"
    for name, tensor in WEIGHTS.items():
        heads = CONFIG.heads if "q_proj" in name else CONFIG.kv_heads if "k_proj" in name else 0
        values = (interleave(tensor, heads) if heads else tensor).numpy()
        if quantise and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(names[name], gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(names[name], values)
    for name, values in tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model, kv):
    step = SequenceStep(request_id="r", tokens=tuple(range(20)), start=0, block_table=(0, 1), sample=True)
    return model.forward(StepPlan(steps=(step,)), kv)


def test_a_converted_model_computes_what_its_weights_say(tmp_path):
    loaded = load_model(write(tmp_path / "plain.gguf"))
    assert loaded.name == "plain"
    assert replace(loaded.config, rms_eps=CONFIG.rms_eps) == CONFIG
    assert loaded.config.rms_eps == pytest.approx(CONFIG.rms_eps)  # a float32 in the file
    kv = loaded.kv_tensor(blocks=2, block_tokens=16)
    assert torch.allclose(logits(loaded.model, kv), logits(LlamaModel(CONFIG, WEIGHTS), kv), atol=1e-5)


def test_quantised_tensors_are_expanded(tmp_path):
    loaded = load_model(write(tmp_path / "q8.gguf", quantise=True))
    for name, wanted in WEIGHTS.items():
        if name.endswith("q_proj.weight"):
            got = loaded.model._layers[int(name.split(".")[2])].q
            assert 0 < (got - wanted).abs().max() < wanted.abs().max() / 100  # Q8_0 keeps 127 steps each way


def test_the_tokenizer_comes_out_of_the_metadata(tmp_path):
    tokenizer = load_model(write(tmp_path / "plain.gguf")).tokenizer
    ids = tokenizer.encode("th th 12<|im_end|>")
    expected = ["th", "Ġth", "Ġ", "1", "2", "<|im_end|>"]
    assert [TOKENS[token] for token in ids] == expected
    assert tokenizer.decode(ids) == "th th 12<|im_end|>"
    assert tokenizer.eos_ids == (2, 0)


def test_conversion_happens_once_and_for_one_content(tmp_path):
    first = converted_directory(write(tmp_path / "model.gguf"))
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert converted_directory(tmp_path / "model.gguf") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert converted_directory(write(tmp_path / "model.gguf", quantise=True)) != first


def test_workers_that_start_at_once_share_one_conversion(tmp_path):
    file = write(tmp_path / "model.gguf")
    stale = cache_directory() / "models" / f"{converted_directory(file).name}.part"
    converted_directory(file).rename(stale)  # what a conversion that was killed leaves behind
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(converted_directory, [file] * 4))
    assert len(found) == 1
    names = sorted(path.name for path in (cache_directory() / "models").iterdir())
    assert names == [found.pop().name, f"{stale.stem}.lock"]


def test_a_failed_conversion_leaves_nothing_that_looks_done(tmp_path):
    file = write(tmp_path / "odd.gguf", tensors=[("blk.0.attn_q.bias", np.zeros(64, np.float32))])
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_q\.bias"):
            converted_directory(file)
    assert [path.suffix for path in (cache_directory() / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "scaled RoPE"),
        (lambda w: w.add_expert_count(8), "expert_count=8"),
        (lambda w: w.add_add_bos_token(True), "add_bos_token True"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(tmp_path, field, message):
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(write(tmp_path / "odd.gguf", fields=[field]))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "fake.gguf").write_bytes(b"not a model at all" * 10)
    with pytest.raises(ValueError, match="not a readable GGUF"):
        load_model(tmp_path / "fake.gguf")


def test_the_cache_stands_where_the_environment_says(tmp_path, monkeypatch):
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("HOMING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "homing"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "homing"
