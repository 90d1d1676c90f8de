"""When does it pay to move KV between two vLLM engines instead of computing it, and does Homing know?

    HOMING_ENGINES_VENV=.venv-engines PYTHONPATH=.dev python benchmarks/bench_vllm_moves.py [--short]
        [--repeats 2] [--output benchmarks/results/vllm_moves.json]

Measured is the time to the first token. Two unmodified engines with Homing's connector (SmolLM2-135M, float32, one
thread each), an emulated WAN between them. For each link and prompt length: the first engine has computed a prompt, the
second is asked for it, with the first as its source ("fetch") or without ("recompute"). Every prompt is new to the
engine that answers. Medians of the repeats; the texts of both engines are compared. Beside each is what a Homing before
both, which has seen some prompts computed and is told of the link, takes the two to cost (`POST /v1/route`), and for
each link the prompt length from which on fetching is quicker: between two measured lengths, and by what Homing says of
the prefixes of a long prompt. Needs the engines that `tests/engines/environment.py` makes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from machine import machine
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.engines.environment import BLOCK_TOKENS, TORCH, VLLM  # noqa: E402 - only now can it be found
from tests.engines.front import together  # noqa: E402
from tests.engines.priced import MovingEngine, Place, PricedRouter  # noqa: E402
from tests.engines.vllm_engine import homing_kv  # noqa: E402
from tests.engines.wan import WanThread, wan_thread  # noqa: E402

LENGTHS = (64, 128, 256, 512, 1024, 2048)
LINKS = ((100e6, 0.005), (300e6, 0.010), (1e9, 0.010), (10e9, 0.040))
SHORT_LENGTHS = (256, 1024)
SHORT_LINKS = ((100e6, 0.005), (10e9, 0.040))
TOKENS = 4
VOCABULARY = range(1_000, 40_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell of the table: medians in seconds, and what Homing said before."""

    case: str
    bits_per_s: float
    delay_s: float
    prompt_tokens: int
    recompute_ttft_s: float
    recompute_predicted_s: float
    fetch_ttft_s: float
    fetch_predicted_s: float
    transfer_s: float
    transfer_mb: float
    loaded_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover:
    """The prompt length in tokens from which on fetching is quicker; None where it is not at any measured length."""

    link: str
    measured_tokens: int | None
    predicted_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A streamed answer."""

    ttft_s: float
    text: str


class Link:
    """Two engines, the link between them, the router before them, and prompts that none of them has seen."""

    def __init__(
        self,
        engines: tuple[MovingEngine, MovingEngine],
        wan: WanThread,
        folder: Path,
        rng: Random,
        link: tuple[float, float],
    ) -> None:
        self._giver, self._taker = engines
        self._rng = rng
        self.bits_per_s, self.delay_s = link
        self.name = f"{self.bits_per_s / 1e6:g} Mbit/s, {self.delay_s * 1e3:g} ms"
        near = [engine.data_address() for engine in engines]
        far = [wan.behind(address, bits_per_s=self.bits_per_s, delay_s=self.delay_s) for address in near]
        self._address = far[0]
        places = [
            Place(
                engine=engine,
                site=site,
                role=role,
                connector={"name": "homing", "kv": {"address": own, f"address_from:{other}": across}},
            )
            for engine, site, role, own, other, across in zip(
                engines, "ab", ("prefill", "both"), near, "ba", far, strict=True
            )
        ]
        self.router = PricedRouter(folder, places, link)

    def learn(self, lengths: tuple[int, ...]) -> None:
        """Let the router see prompts computed."""
        for tokens in (*lengths, *lengths):
            self.router.stream(self._prompt(tokens), 1)

    def row(self, tokens: int, repeats: int) -> Row:
        """Measure one length."""
        predicted = self._predicted(self._held(tokens))
        computed, fetched, moves = [], [], []
        for _ in range(repeats):
            computed.append(self._timed(self._prompt(tokens)).ttft_s)
            prompt = self._prompt(tokens)
            expected = self._giver.complete(prompt, tokens=TOKENS)["choices"][0]["text"]
            timed = self._timed(prompt, **_asking(self._source(tokens)))
            if timed.text != expected:
                raise AssertionError(f"{tokens} tokens: the second engine says {timed.text!r}, not {expected!r}")
            fetched.append(timed.ttft_s)
            moves.append(self._moved(tokens))
        return Row(
            case=f"{self.name}: {tokens} tokens",
            bits_per_s=self.bits_per_s,
            delay_s=self.delay_s,
            prompt_tokens=tokens,
            recompute_ttft_s=round(statistics.median(computed), 4),
            recompute_predicted_s=round(predicted["local"], 4),
            fetch_ttft_s=round(statistics.median(fetched), 4),
            fetch_predicted_s=round(predicted["fetch"], 4),
            transfer_s=round(statistics.median(move["seconds"] for move in moves), 4),
            transfer_mb=round(moves[0]["bytes"] / 1e6, 1),
            loaded_blocks=moves[0]["blocks"],
        )

    def crossover(self, rows: list[Row], longest: int) -> Crossover:
        """Where fetching begins to win: by the rows, and by what the router says of a held prompt's prefixes."""
        prompt = self._held(longest)
        predicted = None
        for tokens in range(longest, BLOCK_TOKENS, -BLOCK_TOKENS):
            costs = self._predicted(prompt[:tokens])
            if costs["fetch"] >= costs["local"]:
                break
            predicted = tokens
        return Crossover(link=self.name, measured_tokens=crossing(rows), predicted_tokens=predicted)

    def _held(self, tokens: int) -> list[int]:
        """A prompt that the first engine holds and the router knows of."""
        prompt = self._prompt(tokens)
        self._giver.complete(prompt, tokens=1)
        self.router.settle(self._giver.name)
        return prompt

    def _predicted(self, prompt: list[int]) -> dict[str, float]:
        """The first token by each kind of plan, in seconds."""
        return {plan["kind"]: plan["estimate"]["ttft_s"] for plan in self.router.priced(prompt)}

    def _source(self, tokens: int) -> dict[str, Any]:
        return {"address": self._address, "block_first": 0, "block_end": tokens // BLOCK_TOKENS}

    def _moved(self, tokens: int) -> dict[str, Any]:
        """The transfer alone, of another prompt: a stream cannot tell of its own."""
        prompt = self._prompt(tokens)
        self._giver.complete(prompt, tokens=1)
        answer = self._taker.complete(prompt, tokens=1, **_asking(self._source(tokens)))
        transfer: dict[str, Any] = answer["kv_transfer_params"]["homing"]["transfers"][0]
        if not transfer["complete"]:
            raise AssertionError(f"{tokens} tokens: {transfer['reason']}")
        return transfer

    def _timed(self, prompt: list[int], **more: Any) -> Timed:
        began_s = time.perf_counter()
        first_s, text = None, ""
        for chunk in self._taker.stream(prompt, tokens=TOKENS, **more):
            first_s = first_s or time.perf_counter()
            text += chunk["choices"][0]["text"]
        return Timed(ttft_s=(first_s or time.perf_counter()) - began_s, text=text)

    def _prompt(self, tokens: int) -> list[int]:
        return [self._rng.choice(VOCABULARY) for _ in range(tokens)]


def crossing(rows: list[Row]) -> int | None:
    """From which prompt length on fetching is quicker, between the lengths that were measured."""
    gains = [(row.prompt_tokens, row.recompute_ttft_s - row.fetch_ttft_s) for row in rows]
    if gains[-1][1] <= 0:
        return None
    for (shorter, loss), (longer, gain) in reversed(list(pairwise(gains))):
        if loss <= 0:
            return round(shorter + (longer - shorter) * loss / (loss - gain))
    return gains[0][0]


def _asking(*sources: dict[str, Any]) -> dict[str, Any]:
    return {"kv_transfer_params": {"homing": {"sources": list(sources), "publish": {"lease_s": 60}}}}


def measure(short: bool, repeats: int) -> tuple[list[Row], list[Crossover]]:
    """All rows, and where they cross."""
    lengths, links = (SHORT_LENGTHS, SHORT_LINKS) if short else (LENGTHS, LINKS)
    rows, crossovers, rng = [], [], Random(1)
    with tempfile.TemporaryDirectory() as name, wan_thread() as wan:
        folder = Path(name)
        kv = homing_kv(store_bytes=3 << 30, pull_timeout_s=120)
        engines = MovingEngine(folder, "giver", kv), MovingEngine(folder, "taker", kv)
        with together(*engines):
            for each in links:
                link = Link(engines, wan, folder, rng, each)
                with link.router:
                    link.learn(lengths)
                    of_link = [link.row(tokens, repeats) for tokens in lengths]
                    crossovers.append(link.crossover(of_link, lengths[-1]))
                    rows += of_link
    return rows, crossovers


def show(rows: list[Row], crossovers: list[Crossover]) -> None:
    """The tables."""
    table = Table(
        "case", "recompute s", "predicted", "fetch s", "predicted", "of it moving s", "MB", title="First token"
    )
    for row in rows:
        seconds = (
            row.recompute_ttft_s,
            row.recompute_predicted_s,
            row.fetch_ttft_s,
            row.fetch_predicted_s,
            row.transfer_s,
        )
        table.add_row(row.case, *(f"{cell:.3f}" for cell in seconds), f"{row.transfer_mb:.1f}")
    Console(width=140).print(table)
    table = Table("link", "measured", "predicted", title="Fetching is quicker from so many tokens on")
    for each in crossovers:
        table.add_row(each.link, str(each.measured_tokens), str(each.predicted_tokens))
    Console(width=140).print(table)


def main() -> None:
    """Run, print the table, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="two lengths, two links, one repeat")
    parser.add_argument("--repeats", type=int, default=2, help="measured answers per cell")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "vllm_moves.json")
    options = parser.parse_args()
    before = machine(vllm=VLLM, torch=TORCH)
    rows, crossovers = measure(options.short, 1 if options.short else options.repeats)
    show(rows, crossovers)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": before,
        "short": options.short,
        "rows": [asdict(row) for row in rows],
        "crossovers": [asdict(each) for each in crossovers],
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
