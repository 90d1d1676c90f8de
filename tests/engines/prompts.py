"""English of any length that no two seeds share: what a model continues in a way that tells whether it read it."""

import random

_WHO = (
    "the baker,an old sailor,my sister,the new teacher,a quiet engineer,the king of Norway,our neighbour,a tired doctor"
)
_DID = "found,sold,painted,repaired,forgot,described,measured,lost,counted,borrowed"
_WHAT = "seven red apples,a wooden boat,the longest bridge,two small keys,a letter from Paris,an empty bottle,the map"
_WHERE = "near the river,in the old library,on Monday morning,behind the station,at the market,under the stairs"
_ASK = "What did {who} do?,Where was {what}?,Tell the story again in your own words.,Who was it and why?"


def _one(rng: random.Random, words: str) -> str:
    return rng.choice(words.split(","))


def english(seed: int, words: int) -> str:
    """About `words` words, then a question."""
    rng = random.Random(seed)
    text = [f"Note {rng.randrange(10**6)}."]
    count = 2
    while count < words:
        sentence = f"{_one(rng, _WHO)} {_one(rng, _DID)} {_one(rng, _WHAT)} {_one(rng, _WHERE)}.".capitalize()
        text.append(sentence)
        count += len(sentence.split())
    question = _one(rng, _ASK).format(who=_one(rng, _WHO), what=_one(rng, _WHAT))
    return " ".join(text) + f" Question: {question} Answer:"
