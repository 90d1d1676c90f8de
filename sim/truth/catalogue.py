"""Shapes of named models, from their published configurations.

Rule 1: a name here is what the `model` of a profile names.
Rule 2: KV is in bf16, whatever the weights are in: that is what the sizes in publications count.
"""

from homing.router.core.errors import ConfigError

from .shape import FullAttention, LatentAttention, MeasuredKv, ModelShape, Part, RecurrentState, WindowAttention

MIB = 1 << 20


def _shape(name: str, source: str, *parts: Part) -> ModelShape:
    return ModelShape(name=name, parts=parts, source=source)


def _config(repository: str) -> str:
    return f"config.json of {repository} (Hugging Face)"


_ALL = (
    _shape(
        "smollm2-135m",
        _config("HuggingFaceTB/SmolLM2-135M"),
        FullAttention(layers=30, kv_heads=3, key_dim=64),
    ),
    _shape("llama-2-7b", _config("meta-llama/Llama-2-7b"), FullAttention(layers=32, kv_heads=32, key_dim=128)),
    _shape("llama-3.1-8b", _config("meta-llama/Llama-3.1-8B"), FullAttention(layers=32, kv_heads=8, key_dim=128)),
    _shape("llama-3.1-70b", _config("meta-llama/Llama-3.1-70B"), FullAttention(layers=80, kv_heads=8, key_dim=128)),
    _shape("qwen3-32b", _config("Qwen/Qwen3-32B"), FullAttention(layers=64, kv_heads=8, key_dim=128)),
    _shape("qwen3-235b", _config("Qwen/Qwen3-235B-A22B"), FullAttention(layers=94, kv_heads=4, key_dim=128)),
    _shape("minimax-m2.5", _config("MiniMaxAI/MiniMax-M2.5"), FullAttention(layers=62, kv_heads=8, key_dim=128)),
    _shape("deepseek-v3", _config("deepseek-ai/DeepSeek-V3"), LatentAttention(layers=61, kv_rank=512, rope_dim=64)),
    _shape("kimi-k2", _config("moonshotai/Kimi-K2-Instruct"), LatentAttention(layers=61, kv_rank=512, rope_dim=64)),
    _shape(
        "qwen3.5-397b",
        f"{_config('Qwen/Qwen3.5-397B-A17B')}; gated DeltaNet state in fp32",
        FullAttention(layers=15, kv_heads=2, key_dim=256),
        RecurrentState(layers=45, heads=64, key_dim=128, value_dim=128, conv_channels=2 * 16 * 128 + 64 * 128),
    ),
    _shape(
        "mimo-v2-flash",
        _config("XiaomiMiMo/MiMo-V2-Flash"),
        FullAttention(layers=9, kv_heads=4, key_dim=192, value_dim=128),
        WindowAttention(
            attention=FullAttention(layers=39, kv_heads=8, key_dim=192, value_dim=128),
            window_tokens=128,
        ),
    ),
    _shape(
        "kimi-linear-48b",
        f"{_config('moonshotai/Kimi-Linear-48B-A3B-Instruct')}; Kimi Delta Attention state in bf16",
        LatentAttention(layers=7, kv_rank=512, rope_dim=64),
        RecurrentState(layers=20, heads=32, key_dim=128, value_dim=128, conv_channels=3 * 32 * 128, element_bytes=2),
    ),
    _shape(
        "prfaas-1t",
        "Fitted to the four sizes of arXiv 2604.15039, Table 5, to 0.1 MiB, read as 1,024, 8,192, 32,000 and 130,000 "
        "tokens. 17,280 B are 15 latent layers of 576 values; with the paper's 3:1 of KDA to MLA that makes 60 layers.",
        MeasuredKv(layers=60, token_bytes=17_280, state_bytes=round(173.9 * MIB)),
    ),
)

SHAPES = {shape.name: shape for shape in _ALL}
"""Every shape by its name."""


def shape_of(name: str) -> ModelShape:
    """The shape of a named model; ConfigError that names those there are."""
    if name not in SHAPES:
        raise ConfigError(f"model: no shape is named {name!r}; there are {', '.join(sorted(SHAPES))}")
    return SHAPES[name]
