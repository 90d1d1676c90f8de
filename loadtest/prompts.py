"""Texts that depend on a seed and a name alone, so that equal names give equal prompts on any machine.

Rule 1: a text is about as many characters as its tokens need; how many that are per token is the model's business.
"""

from collections.abc import Sequence
from functools import lru_cache
from random import Random

_ENGLISH = (
    "able about after again also answer around back because been before begin between block both cache call came carry"
    " change city close cluster come cover cross decode depend differ down each early earth even every far few field"
    " find first follow form found four from gave give good great group grow hand head help here high hold home house"
    " idea keep kind know land large last learn left letter life light line list live long look made many mark mean"
    " might mile more morning most move must name near need never next night node north note number ocean often only"
    " open order other over page part pass place plan plant point port prefix press prompt query read real right river"
    " room round route same school second seem sentence serve several shape ship short should side since small some"
    " sound south space stand start state still stop store story street such table take talk tell than their there"
    " these thing think this those thought three through time token together told took toward travel tree true turn"
    " under until upon usual vary very voice wait walk want warm watch water week well west what when where which while"
    " white whole will with without wonder word work world would write year young"
)
WORDS = tuple(_ENGLISH.split())
KEPT_TEXTS = 4096
"""Texts that are kept because they come again: 8 MiB of blocks of 512 tokens."""


class Texts:
    """Texts by name. `chars_per_token` is 4 for English and a usual tokenizer, 1 for a tokenizer of bytes."""

    def __init__(self, seed: int, *, chars_per_token: float = 4.0) -> None:
        if not 0 < chars_per_token <= 100:
            raise ValueError(f"chars_per_token: expected a number from 0 to 100, got {chars_per_token}")
        self._seed = seed
        self._chars_per_token = chars_per_token
        self._text = lru_cache(KEPT_TEXTS)(self._made)

    def text(self, name: str, tokens: int) -> str:
        """About `tokens` tokens of words, the same for the same name.

        >>> texts = Texts(7)
        >>> one, other = texts.text("a", 10), texts.text("b", 10)
        >>> len(one), one == Texts(7).text("a", 10), one == other
        (40, True, False)
        """
        return self._text(name, tokens)

    def _made(self, name: str, tokens: int) -> str:
        # A generator seeded with a text goes through SHA-512, not through hash(): the same in every process.
        random = Random(f"{self._seed}/{name}")  # noqa: S311 - a load, no secret
        chars = max(1, round(tokens * self._chars_per_token))
        return " ".join(random.choices(WORDS, k=chars // 2 + 1))[:chars]


def with_system(system: str, turns: Sequence[tuple[str, str]]) -> tuple[dict[str, str], ...]:
    """OpenAI's messages: a system prompt, then `(role, content)` one after another."""
    head = ({"role": "system", "content": system},) if system else ()
    return (*head, *({"role": role, "content": content} for role, content in turns))
