"""Whose KV it is: a name for a model's weights that is equal on two engines exactly when their KV is interchangeable.

The name covers the model's configuration and, of every tensor of its safetensors files, the name, the shape and the
first kilobytes: two fine-tunes of one model differ there, and a checkpoint of any size is read in moments.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

_SAMPLE_BYTES = 4096
_HEADER_BYTES_MAX = 256 << 20
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


def weights_name(model_config: Any, given: str = "") -> str:
    """The operator's name if `given`, else one read off the model's files, else vLLM's name and revision of it.

    `model_config` is vLLM's. Never raises for files that cannot be read.
    """
    if given:
        return given
    digest = xxhash.xxh3_64(_settled(model_config.hf_config.to_dict()))
    digest.update(f"|{model_config.quantization}|{model_config.dtype}".encode())
    folder = Path(str(model_config.model))
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    try:
        for file in files:
            _sample(file, digest)
    except (OSError, ValueError):
        files = []
    if not files:
        digest.update(f"|{model_config.model}|{model_config.revision}".encode())
    return digest.hexdigest()


def _settled(config: Mapping[str, Any]) -> bytes:
    kept = {name: value for name, value in config.items() if name not in _VOLATILE}
    return json.dumps(kept, sort_keys=True, default=str).encode()


def _sample(file: Path, digest: "xxhash.xxh3_64") -> None:
    """Feed a safetensors file's names, shapes and the first bytes of each tensor.

    The format: the header's length as a little-endian u64, a JSON header, the bytes
    (https://github.com/huggingface/safetensors#format).
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _HEADER_BYTES_MAX:
            raise ValueError(f"{file} is no safetensors file: its header would have {length} bytes")
        header = json.loads(stream.read(length))
        for name in sorted(header):
            if name == "__metadata__":
                continue
            begin, end = header[name]["data_offsets"]
            stream.seek(8 + length + begin)
            digest.update(f"{name}{header[name]['shape']}".encode())
            digest.update(stream.read(min(_SAMPLE_BYTES, end - begin)))
