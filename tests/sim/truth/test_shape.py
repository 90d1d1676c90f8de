"""KV sizes, against those that are published."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.errors import ConfigError
from homing.sim.truth import SHAPES, shape_of
from homing.sim.truth.shape import FullAttention, ModelShape, RecurrentState, WindowAttention

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

PUBLISHED = {
    "smollm2-135m": (22.5, 0, 0.703),
    "llama-2-7b": (512, 0, 16),
    "llama-3.1-8b": (128, 0, 4),
    "llama-3.1-70b": (320, 0, 10),
    "qwen3-32b": (256, 0, 8),
    "qwen3-235b": (188, 0, 5.875),
    "minimax-m2.5": (248, 0, 7.75),
    "deepseek-v3": (68.6, 0, 2.14),
    "kimi-k2": (68.6, 0, 2.14),
    "qwen3.5-397b": (30, 183, 1.12),
    "mimo-v2-flash": (22.5, 24.4, 0.73),
    "kimi-linear-48b": (7.875, 21.4, 0.267),
    "prfaas-1t": (16.875, 173.9, 0.697),
}
"""KiB per token, MiB of state, GiB at 32,768 tokens."""


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_sizes_are_the_published_ones(name):
    shape, (token_kib, state_mib, gib) = shape_of(name), PUBLISHED[name]
    assert shape.bytes_per_token / KIB == pytest.approx(token_kib, rel=0.002)
    assert shape.state_bytes / MIB == pytest.approx(state_mib, rel=0.002)
    assert shape.kv_bytes(32_768) / GIB == pytest.approx(gib, rel=0.005)


def test_the_catalogue_is_what_is_published():
    assert SHAPES.keys() == PUBLISHED.keys()
    assert all(shape.source and shape.name == name for name, shape in SHAPES.items())


@pytest.mark.parametrize(("tokens", "mib"), [(1024, 190.8), (8192, 308.9), (32_000, 701.3), (130_000, 2316.3)])
def test_the_measured_model_has_the_sizes_of_its_table(tokens, mib):
    """arXiv 2604.15039, Table 5."""
    assert shape_of("prfaas-1t").kv_bytes(tokens) / MIB == pytest.approx(mib, abs=0.1)


@pytest.mark.parametrize(
    ("name", "layers"), [("llama-3.1-70b", 80), ("deepseek-v3", 61), ("qwen3.5-397b", 60), ("mimo-v2-flash", 48)]
)
def test_layers(name, layers):
    assert shape_of(name).layers == layers


@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 1 << 20), st.integers(1, 1 << 12))
def test_more_tokens_keep_at_least_as_much(name, tokens, more):
    shape = SHAPES[name]
    grown = shape.kv_bytes(tokens + more) - shape.kv_bytes(tokens)
    assert grown >= more * shape.bytes_per_token
    assert shape.kv_bytes(0) == 0
    assert shape.kv_bytes(tokens) <= shape.state_bytes + tokens * shape.bytes_per_token


@given(st.integers(1, 300), st.integers(1, 200))
def test_a_window_keeps_the_last_tokens_and_a_state_is_there_at_once(tokens, window):
    attention = FullAttention(layers=3, kv_heads=2, key_dim=4, value_dim=8, element_bytes=1)
    shape = ModelShape(
        name="x",
        parts=(
            WindowAttention(attention=attention, window_tokens=window),
            RecurrentState(layers=2, heads=3, key_dim=4, value_dim=5, conv_channels=7, conv_kernel=4),
        ),
        source="test",
    )
    assert shape.kv_bytes(tokens) == 3 * 2 * 12 * min(tokens, window) + 2 * (3 * 4 * 5 * 4 + 3 * 7 * 2)
    assert shape.bytes_per_token == 0
    assert shape.layers == 5


def test_an_unknown_shape_is_refused():
    with pytest.raises(ConfigError, match="no shape is named 'gpt-2'; there are deepseek-v3, "):
        shape_of("gpt-2")
