"""Text for the router: tokenizers as the config names them, loaded when first needed."""

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from homing.router.core.errors import ConfigError
from homing.router.service.config import Config
from homing.router.service.text import TextCodec, TextDecoder

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
    """The codecs of all models whose config names a tokenizer, loaded at once, so that errors come at the start."""

    def __init__(self, config: Config) -> None:
        self._codecs: dict[str, TextCodec] = {}
        for position, section in enumerate(config.models):
            if section.tokenizer is None:
                continue
            try:
                from homing.workers.model.sources import load_tokenizer

                tokenizer = load_tokenizer(section.tokenizer)
            except (OSError, ValueError, ImportError) as error:
                raise ConfigError(f"models[{position}].tokenizer: {error}") from error
            self._codecs[section.name] = ModelText(tokenizer)
            log.info("model %s: text is tokenised here, with %s", section.name, section.tokenizer)

    def __call__(self, model: str) -> TextCodec | None:
        """The codec of a model; None when the config names none."""
        return self._codecs.get(model)
