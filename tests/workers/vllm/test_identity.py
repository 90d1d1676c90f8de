"""The name of a model's weights: equal for copies, other for anything that makes other KV."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from homing.workers.vllm.identity import weights_name


def model(folder, *, values=1.0, config=None, **more):
    folder.mkdir(exist_ok=True)
    weights = {f"layer.{i}": torch.full((64, 64), values + i) for i in range(3)}
    save_file(weights, folder / "model.safetensors")
    return described(folder, config, **more)


def described(folder, config=None, *, quantization=None, dtype=torch.float32):
    raw = {"num_hidden_layers": 3, "_name_or_path": str(folder), **(config or {})}
    return SimpleNamespace(
        hf_config=SimpleNamespace(to_dict=lambda: dict(raw)),
        model=str(folder),
        revision=None,
        quantization=quantization,
        dtype=dtype,
    )


def test_copies_have_one_name(tmp_path):
    assert weights_name(model(tmp_path / "a")) == weights_name(model(tmp_path / "b"))


@pytest.mark.parametrize(
    "other",
    [{"values": 2.0}, {"config": {"rope_theta": 1e6}}, {"quantization": "fp8"}, {"dtype": torch.bfloat16}],
    ids=["weights", "config", "quantization", "dtype"],
)
def test_what_makes_other_kv_has_another_name(tmp_path, other):
    assert weights_name(model(tmp_path / "a")) != weights_name(model(tmp_path / "b", **other))


def test_one_tensor_in_a_later_file_tells(tmp_path):
    one, two = model(tmp_path / "a"), model(tmp_path / "b")
    save_file({"z": torch.zeros(8)}, tmp_path / "a" / "more.safetensors")
    save_file({"z": torch.ones(8)}, tmp_path / "b" / "more.safetensors")
    assert weights_name(one) != weights_name(two)


def test_without_files_the_models_name_counts(tmp_path):
    assert weights_name(described("org/model")) == weights_name(described("org/model"))
    assert weights_name(described("org/model")) != weights_name(described("org/other"))


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0notjson!"])
def test_files_that_cannot_be_read_do_not_stop_an_engine(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert weights_name(described(tmp_path))


def test_the_operators_name_is_taken_as_it_is(tmp_path):
    assert weights_name(model(tmp_path / "a"), "llama-3-8b") == "llama-3-8b"
