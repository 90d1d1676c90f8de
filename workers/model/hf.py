"""Models in Hugging Face layout: `config.json`, `*.safetensors` (sharded or not), `tokenizer.json`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from safetensors import SafetensorError, safe_open

from .config import LlamaConfig, token_ids

if TYPE_CHECKING:
    import torch  # the router reads configs on machines without torch

_INDEX = "model.safetensors.index.json"
_READ_BYTES = 4 * 1024 * 1024


def read_hf_config(directory: Path) -> LlamaConfig:
    """The model's shape, with the end tokens of `generation_config.json` beside those of `config.json`."""
    config = LlamaConfig.from_hf(_read_json(directory / "config.json"))
    generation = directory / "generation_config.json"
    if not generation.is_file():
        return config
    more = token_ids(_read_json(generation).get("eos_token_id"))
    return replace(config, eos_ids=tuple(dict.fromkeys(config.eos_ids + more)))


def read_hf_weights(directory: Path) -> "dict[str, torch.Tensor]":
    """All tensors by name, mapped into memory: processes that read the same files share their pages."""
    weights: dict[str, torch.Tensor] = {}
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    weights[name] = tensors.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{file} is not a readable safetensors file ({error}): download it again") from error
    return weights


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a directory, sorted. `FileNotFoundError` if none or one is missing."""
    index = directory / _INDEX
    if index.is_file():
        files = sorted({directory / name for name in _read_json(index)["weight_map"].values()})
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory} holds no *.safetensors: convert the checkpoint to safetensors")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is named by {_INDEX} but missing: download the rest of the checkpoint")
    return tuple(files)


def weights_identity(directory: Path) -> bytes:
    """XXH3-64 over the whole content of the weight files.

    Whole, because KV from almost equal weights (a fine-tune of a few layers) is silently wrong. The hash runs
    at the speed of the disk, and leaves the pages in memory that the first forward pass reads.
    """
    digest = xxhash.xxh3_64()
    buffer = bytearray(_READ_BYTES)
    for file in weight_files(directory):
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    return digest.digest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing: a model directory needs it") from None
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, not {type(content).__name__}")  # noqa: TRY004 - bad file
    return content
