"""Loading models from directories, by name, and the errors on the way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from homing.workers.engine.step import SequenceStep, StepPlan
from homing.workers.model.config import UnsupportedModelError
from homing.workers.model.tiny import TINY_CONFIG, random_weights
from homing.workers.model.weights import load_model

CONFIG = replace(TINY_CONFIG, layers=2, eos_ids=(5,))
WEIGHTS = random_weights(CONFIG, seed=9)


def write(directory, config=CONFIG, weights=WEIGHTS, shards=1):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    if shards == 1:
        save_file(weights, directory / "model.safetensors")
        return directory
    names, weight_map = sorted(weights), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def logits(loaded):
    step = SequenceStep(request_id="r", tokens=(1, 2, 3, 4), start=0, block_table=(0,), sample=True)
    return loaded.model.forward(StepPlan(steps=(step,)), loaded.kv_tensor(blocks=1, block_tokens=16))


def test_one_file_and_several_shards_are_the_same_model(tmp_path):
    one, three = load_model(write(tmp_path / "one")), load_model(str(write(tmp_path / "three", shards=3)))
    assert (one.name, three.name) == ("one", "three")
    assert one.config == three.config == CONFIG
    assert one.tokenizer is None
    assert torch.equal(logits(one), logits(three))


def test_the_fingerprint_is_of_config_and_content_not_of_the_place(tmp_path):
    one, copy = load_model(write(tmp_path / "one")), load_model(write(tmp_path / "copy"))
    assert one.fingerprint == copy.fingerprint
    name = "model.layers.1.self_attn.k_proj.weight"
    touched = WEIGHTS | {name: WEIGHTS[name].index_fill(0, torch.tensor([3]), 0.5)}
    others = [
        load_model(write(tmp_path / "touched", weights=touched)),
        load_model(write(tmp_path / "theta", config=replace(CONFIG, rope_theta=5e5))),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_weights_are_mapped_not_copied(tmp_path):
    """Workers on one machine share the pages of a mapped file, and nothing of a copied one."""
    loaded = load_model(write(tmp_path / "model"))
    address = loaded.model._layers[0].q.data_ptr()
    with Path("/proc/self/maps").open() as maps:
        ranges = [line.split() for line in maps if line.rstrip().endswith("model/model.safetensors")]
    bounds = [[int(bound, 16) for bound in fields[0].split("-")] for fields in ranges]
    assert any(first <= address < last for first, last in bounds)


def test_end_tokens_of_the_generation_config_count_too(tmp_path):
    directory = write(tmp_path / "model")
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 8]}')
    assert load_model(directory).config.eos_ids == (5, 8)


def test_bfloat16_weights_on_disk_load_into_either_format(tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in WEIGHTS.items()}
    directory = write(tmp_path / "model", weights=half)
    assert load_model(directory).model.dtype == torch.float32
    loaded = load_model(directory, dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert "/bfloat16/" in loaded.kv_tensor(blocks=1, block_tokens=16).format


def test_tiny_is_the_same_for_the_same_seed_only():
    zero, again, one = load_model("tiny"), load_model("tiny:0"), load_model("tiny:1")
    assert zero.fingerprint == again.fingerprint != one.fingerprint
    assert torch.equal(logits(zero), logits(again))
    assert not torch.equal(logits(zero), logits(one))
    assert zero.tokenizer is not None
    assert zero.tokenizer.eos_ids == zero.config.eos_ids
    assert zero.tokenizer.vocab_tokens == zero.config.vocab_tokens


def test_a_source_that_is_nothing_is_refused_with_the_choices(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a directory.*'tiny:SEED'"):
        load_model(tmp_path / "nowhere")


def test_threads_below_one_are_refused():
    with pytest.raises(ValueError, match="threads 0"):
        load_model("tiny", threads=0)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: (d / "config.json").unlink(), FileNotFoundError, "config.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), ValueError, "not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), ValueError, "JSON object"),
        (lambda d: (d / "config.json").write_text('{"model_type": "qwen3"}'), UnsupportedModelError, "qwen3"),
        (lambda d: (d / "model-00002-of-00002.safetensors").unlink(), FileNotFoundError, "named by"),
        (lambda d: [file.unlink() for file in d.glob("model*")], FileNotFoundError, "no \\*.safetensors"),
        (lambda d: (d / "model-00002-of-00002.safetensors").write_bytes(b"x" * 99), ValueError, "00002"),
    ],
)
def test_a_broken_directory_is_refused_by_name(tmp_path, spoil, error, message):
    directory = write(tmp_path / "model", shards=2)
    spoil(directory)
    with pytest.raises(error, match=message):
        load_model(directory)
