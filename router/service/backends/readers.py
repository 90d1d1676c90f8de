"""Where the tokens of each model's prompts come from: its own tokenizer here, its engines, or the text itself."""

import logging
from collections.abc import Callable, Mapping

from homing.router.engines.types import EngineError
from homing.router.tokens.engine import EngineReader
from homing.router.tokens.types import PromptReader

from .endpoint import Endpoints

log = logging.getLogger(__name__)

LocalReaderOf = Callable[[str, PromptReader], PromptReader | None]
"""The reader that has a model's tokenizer in this process, given the one for what it cannot read; None without."""


class Readers:
    """A reader per model, made when it is first asked for."""

    def __init__(self, local_reader_of: LocalReaderOf, endpoints: Endpoints) -> None:
        self._local_reader_of = local_reader_of
        self._endpoints = endpoints
        self._readers: dict[str, PromptReader] = {}

    def __call__(self, model: str) -> PromptReader:
        """The reader of a model."""
        reader = self._readers.get(model)
        if reader is None:
            reader = self._readers[model] = self._make(model)
            log.info("model %s: tokens of prompts come from: %s", model, reader.source)
        return reader

    def source(self, model: str) -> str:
        """Where a model's tokens come from, in a word."""
        return self(model).source.value

    def _make(self, model: str) -> PromptReader:
        async def ask(path: str, body: Mapping[str, object]) -> tuple[int, ...] | None:
            for endpoint in self._endpoints:
                if endpoint.model == model:
                    return await endpoint.adapter.tokenize(path, body)
            raise EngineError(f"no engine serves {model} at the moment")

        engine = EngineReader(ask)
        return self._local_reader_of(model, engine) or engine
