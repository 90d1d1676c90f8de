"""What a tokenizer puts around a whole prompt: the ids that its post-processor adds before and after, such as `<s>`."""

from collections.abc import Mapping
from typing import Any

Affixes = tuple[tuple[int, ...], tuple[int, ...]]


def affixes(processor: Mapping[str, Any] | None) -> Affixes | None:
    """The ids before and after a single sequence, by the `post_processor` of a `tokenizer.json`; None if it does more
    than to put ids around it.
    """
    if processor is None:
        return (), ()
    match processor.get("type"):
        case "ByteLevel":
            return (), ()
        case "BertProcessing" | "RobertaProcessing":
            return (int(processor["cls"][1]),), (int(processor["sep"][1]),)
        case "TemplateProcessing":
            return _of_template(processor)
        case "Sequence":
            before: tuple[int, ...] = ()
            after: tuple[int, ...] = ()
            for inner in processor.get("processors") or []:
                around = affixes(inner)
                if around is None:
                    return None
                before, after = around[0] + before, after + around[1]
            return before, after
    return None


def _of_template(processor: Mapping[str, Any]) -> Affixes | None:
    """A template of special tokens around one sequence."""
    sides: list[list[int]] = [[]]
    for piece in processor.get("single") or []:
        if "Sequence" in piece:
            sides.append([])
        else:
            sides[-1].extend(processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    if len(sides) != 2:
        return None
    return tuple(sides[0]), tuple(sides[1])
