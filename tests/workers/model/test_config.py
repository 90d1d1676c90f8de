"""Reading Hugging Face configs: what is understood, and what is refused by name."""

from dataclasses import replace

import pytest

from homing.workers.model.config import LlamaConfig, RopeScaling, UnsupportedModelError, dtype_name
from homing.workers.model.tiny import TINY_CONFIG

SCALED = replace(
    TINY_CONFIG,
    tied_embeddings=False,
    bos_id=None,
    eos_ids=(1, 2),
    rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_tokens=8192),
)
RAW = TINY_CONFIG.to_hf()


@pytest.mark.parametrize("config", [TINY_CONFIG, SCALED])
def test_a_config_survives_the_way_through_hugging_faces_form(config):
    assert LlamaConfig.from_hf(config.to_hf()) == config


def test_fields_may_be_left_out_where_hugging_face_has_defaults():
    raw = {key: RAW[key] for key in RAW if key not in {"head_dim", "num_key_value_heads", "rope_theta"}}
    config = LlamaConfig.from_hf(raw | {"eos_token_id": 7})
    assert (config.head_dim, config.kv_heads, config.rope_theta, config.eos_ids) == (16, 4, 10_000.0, (7,))


def test_rope_settings_are_read_from_where_transformers_5_puts_them():
    raw = {key: value for key, value in RAW.items() if key != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": 123.0}
    assert LlamaConfig.from_hf(raw | {"rope_parameters": rope}).rope_theta == 123.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(UnsupportedModelError, match=message):
        LlamaConfig.from_hf(RAW | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "multiple of kv_heads 3"),
        ({"head_dim": 15}, "head_dim 15"),
        ({"num_hidden_layers": 0}, "layers is 0"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ],
)
def test_a_broken_config_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig.from_hf(RAW | change)


def test_caches_are_interchangeable_only_if_everything_that_shapes_them_is_equal():
    base = TINY_CONFIG.kv_format(16, "float32", "aa")
    assert base == "llama/4x2x16/float32/b16/aa"
    others = {
        TINY_CONFIG.kv_format(32, "float32", "aa"),
        TINY_CONFIG.kv_format(16, "bfloat16", "aa"),
        TINY_CONFIG.kv_format(16, "float32", "bb"),
        replace(TINY_CONFIG, layers=5).kv_format(16, "float32", "aa"),
    }
    assert len(others | {base}) == 5


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="'int8' is not one of"):
        dtype_name("torch.int8")
