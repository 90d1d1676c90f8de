"""One GGUF file to one Hugging Face directory: names, numbers, tokenizer."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .config import LlamaConfig, UnsupportedModelError
from .gguf_tokenizer import end_ids, tokenizer_files
from .safetensors_file import FloatArray, write_safetensors

_PART_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def convert(file: Path, directory: Path) -> None:
    """Write a GGUF of architecture `llama` as `config.json`, `model.safetensors` and tokenizer files."""
    reader = _open(file)
    fields = _fields(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(fields, tensors)
    for name, text in {
        "config.json": json.dumps(config.to_hf(), indent=2),
        **tokenizer_files(fields),
    }.items():
        (directory / name).write_text(text)
    write_safetensors(directory / "model.safetensors", _entries(tensors, config))


def _open(file: Path) -> Any:
    try:
        import gguf  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise ImportError("reading a GGUF file needs 'gguf': pip install 'homing[demo]'") from error
    try:
        return gguf.GGUFReader(file)
    except ValueError as error:
        raise ValueError(f"{file} is not a readable GGUF file: {error}") from error


def _fields(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def _config(fields: dict[str, Any], tensors: dict[str, Any]) -> LlamaConfig:
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(f"GGUF architecture {architecture!r} is not supported: use one of 'llama'")
    for key in ("llama.expert_count", "llama.attention.sliding_window"):
        if fields.get(key):
            raise UnsupportedModelError(f"GGUF: {key}={fields[key]} is not supported: use a dense Llama model")
    if "rope_freqs.weight" in tensors or fields.get("llama.rope.scaling.type", "none") != "none":
        raise UnsupportedModelError("GGUF: scaled RoPE is not supported: load the model in Hugging Face layout")

    def of(key: str) -> Any:
        if f"llama.{key}" not in fields:
            raise ValueError(f"GGUF: the field 'llama.{key}' is missing: is the file complete?")
        return fields[f"llama.{key}"]

    heads, hidden = of("attention.head_count"), of("embedding_length")
    return LlamaConfig(
        vocab_tokens=int(tensors["token_embd.weight"].shape[1]),
        hidden=hidden,
        layers=of("block_count"),
        heads=heads,
        kv_heads=fields.get("llama.attention.head_count_kv", heads),
        head_dim=fields.get("llama.attention.key_length", hidden // heads),
        intermediate=of("feed_forward_length"),
        context_tokens=of("context_length"),
        rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
        rms_eps=float(of("attention.layer_norm_rms_epsilon")),
        tied_embeddings="output.weight" not in tensors,
        bos_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_ids=end_ids(fields),
    )


def _entries(
    tensors: Mapping[str, Any], config: LlamaConfig
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], FloatArray]]]:
    """Name, shape and reader of each tensor: dequantised one at a time, so memory holds one at a time."""
    for name, tensor in tensors.items():
        shape = tuple(int(size) for size in reversed(tensor.shape))
        heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(name.split(".")[-2], 0)
        yield _hf_name(name), shape, partial(_read, tensor, shape, heads)


def _hf_name(name: str) -> str:
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    match name.split("."):
        case ["blk", index, part, "weight"] if part in _PART_NAMES:
            return f"model.layers.{index}.{_PART_NAMES[part]}.weight"
    raise UnsupportedModelError(
        f"GGUF: the tensor {name!r} is not part of a plain Llama model, which alone is supported"
    )


def _read(tensor: Any, shape: tuple[int, ...], heads: int) -> FloatArray:
    import gguf  # noqa: PLC0415 - an optional dependency

    values: FloatArray = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    if not heads:
        return values
    # ggml rotates neighbours (0,1), (2,3).. of a head, Hugging Face its halves (0,d/2), (1,d/2+1)..: the
    # rows of Q and K are stored in the order of the first and wanted in the order of the second.
    pairs = values.reshape(heads, shape[0] // heads // 2, 2, shape[1])
    return pairs.swapaxes(1, 2).reshape(shape)
