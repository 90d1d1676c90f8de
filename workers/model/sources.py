"""What a model's name stands for: `tiny`, `smollm2`, a directory or a `.gguf` file. No torch here."""

import re
from dataclasses import dataclass
from pathlib import Path

from .gguf import converted_directory, smollm2_file
from .hf import read_hf_config
from .tokenizer import ByteTokenizer, HfTokenizer, Tokenizer

_TINY = re.compile(r"tiny(?::(?P<seed>\d{1,9}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySource:
    """The random model of this seed, which needs no files."""

    name: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySource:
    """A directory in Hugging Face layout, converted from a GGUF file if need be."""

    name: str
    directory: Path


def resolve(source: str | Path) -> TinySource | DirectorySource:
    """Find a model; converts a GGUF file on first use. `FileNotFoundError` lists the choices."""
    tiny = _TINY.fullmatch(str(source))
    if tiny is not None:
        seed = int(tiny["seed"] or 0)
        return TinySource(name=f"tiny:{seed}" if seed else "tiny", seed=seed)
    if str(source) == "smollm2":
        return DirectorySource(name="smollm2", directory=converted_directory(smollm2_file()))
    path = Path(source).expanduser()
    if path.is_dir():
        return DirectorySource(name=path.resolve().name, directory=path)
    if path.is_file() and path.suffix == ".gguf":
        return DirectorySource(name=path.stem, directory=converted_directory(path))
    raise FileNotFoundError(
        f"model {str(source)!r} is neither a directory, nor a .gguf file, nor one of 'smollm2', 'tiny', "
        "'tiny:SEED': check the path"
    )


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a model alone, for a router: the same names as `load_model`, without torch."""
    found = resolve(source)
    if isinstance(found, TinySource):
        return ByteTokenizer()
    return HfTokenizer.from_directory(found.directory, eos_ids=read_hf_config(found.directory).eos_ids)
