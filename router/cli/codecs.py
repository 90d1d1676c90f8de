"""Text for the router: tokenizers as the config names them, loaded when first needed."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from homing.router.core.errors import ConfigError
from homing.router.service.config import Config
from homing.router.service.sections import ModelSection
from homing.router.service.text import TextCodec, TextDecoder
from homing.router.tokens.local import LocalReader
from homing.router.tokens.types import PromptReader

log = logging.getLogger(__name__)


if TYPE_CHECKING:
    from homing.workers.model.tokenizer import Tokenizer


class ModelText:
    """A model's tokenizer as the router wants it."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Text as token ids."""
        return self._tokenizer.encode(text)

    def chat(self, messages: Iterable[Mapping[str, str]]) -> list[int]:
        """A conversation as token ids."""
        return self._tokenizer.chat(messages)

    def decoder(self) -> TextDecoder:
        """A decoder for one answer."""
        from homing.workers.model.tokenizer import StreamDecoder

        return StreamDecoder(self._tokenizer)


class Codecs:
    """The tokenizers of all models whose config names one, loaded at once, so that errors come at the start.

    Homing's own workers need a codec, which knows byte-level tokenizers; engines of others need a reader of whole
    requests, which knows all of Hugging Face's.
    """

    def __init__(self, config: Config) -> None:
        self._codecs: dict[str, TextCodec] = {}
        self._folders: dict[str, tuple[Path, int | None]] = {}
        for position, section in enumerate(config.models):
            if section.tokenizer is None:
                continue
            try:
                self._load(section, section.tokenizer)
            except (OSError, ValueError, ImportError) as error:
                raise ConfigError(f"models[{position}].tokenizer: {error}") from error
            log.info("model %s: text is tokenised here, with %s", section.name, section.tokenizer)

    def __call__(self, model: str) -> TextCodec | None:
        """The codec of a model; None when the config names none."""
        return self._codecs.get(model)

    def reader(self, model: str, fallback: PromptReader) -> PromptReader | None:
        """The reader of a model's requests; None when the config names no tokenizer for it."""
        found = self._folders.get(model)
        if found is None:
            return None
        folder, context_tokens = found
        return LocalReader.from_folder(folder, context_tokens=context_tokens, fallback=fallback)

    def _load(self, section: ModelSection, source: str) -> None:
        from homing.workers.model.config import UnsupportedModelError
        from homing.workers.model.sources import DirectorySource, load_tokenizer, resolve

        found = resolve(source)
        if isinstance(found, DirectorySource):
            LocalReader.from_folder(found.directory)
            self._folders[section.name] = found.directory, section.context_tokens
        try:
            self._codecs[section.name] = ModelText(load_tokenizer(source))
        except UnsupportedModelError:
            if section.name not in self._folders:
                raise
            log.info("model %s: only for engines behind HTTP: its tokenizer is not byte-level", section.name)
