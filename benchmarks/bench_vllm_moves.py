"""When does it pay to move KV between two vLLM engines instead of computing it? Time to first token, measured.

    HOMING_ENGINES_VENV=.venv-engines PYTHONPATH=.dev python benchmarks/bench_vllm_moves.py [--short]
        [--repeats 3] [--output benchmarks/results/vllm_moves.json]

Two unmodified engines with Homing's connector (SmolLM2-135M, float32, one thread each), an emulated WAN between them.
For each prompt length and link: the first engine has computed a prompt, the second is asked for it, with the first as
its source ("fetch") or without ("recompute"). Every prompt is new to the engine that answers. Medians of the repeats;
the texts of both engines are compared. Needs the engines that `tests/engines/environment.py` makes.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.engines.environment import BLOCK_TOKENS, TORCH, VLLM  # noqa: E402 - only now can it be found
from tests.engines.vllm_engine import EngineOptions, VllmEngine, homing_kv  # noqa: E402
from tests.engines.wan import WanThread, wan_thread  # noqa: E402

LENGTHS = (256, 512, 1024, 2048, 4096)
LINKS = ((100e6, 0.005), (1e9, 0.010), (10e9, 0.020), (10e9, 0.040))
SHORT_LENGTHS = (256, 1024)
SHORT_LINKS = ((100e6, 0.005), (10e9, 0.040))
TOKENS = 4
VOCABULARY = range(1_000, 40_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell of the table: medians in seconds."""

    prompt_tokens: int
    bits_per_s: float
    delay_s: float
    recompute_ttft_s: float
    fetch_ttft_s: float
    transfer_s: float
    transfer_bytes: int
    loaded_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A streamed answer."""

    ttft_s: float
    text: str


class Bench:
    """Two engines, and prompts that neither has seen."""

    def __init__(self, giver: VllmEngine, taker: VllmEngine, wan: WanThread) -> None:
        self._giver = giver
        self._taker = taker
        self._wan = wan
        self._rng = Random(1)
        self._address = self._told(giver.complete("warm", tokens=TOKENS, **_asking()))["address"]
        for engine in (giver, taker):
            engine.complete(self._prompt(600), tokens=TOKENS)

    def row(self, tokens: int, bits_per_s: float, delay_s: float, repeats: int) -> Row:
        """Measure one length over one link."""
        address = self._wan.behind(self._address, bits_per_s=bits_per_s, delay_s=delay_s)
        computed, fetched, moves = [], [], []
        for _ in range(repeats):
            computed.append(self._timed(self._prompt(tokens)).ttft_s)
            prompt = self._prompt(tokens)
            expected = self._giver.complete(prompt, tokens=TOKENS, **_asking())["choices"][0]["text"]
            source = {"address": address, "block_first": 0, "block_end": tokens // BLOCK_TOKENS}
            timed = self._timed(prompt, **_asking(source))
            if timed.text != expected:
                raise AssertionError(f"{tokens} tokens: the second engine says {timed.text!r}, not {expected!r}")
            fetched.append(timed.ttft_s)
            moves.append(self._moved(tokens, address))
        return Row(
            prompt_tokens=tokens,
            bits_per_s=bits_per_s,
            delay_s=delay_s,
            recompute_ttft_s=round(statistics.median(computed), 4),
            fetch_ttft_s=round(statistics.median(fetched), 4),
            transfer_s=round(statistics.median(move["seconds"] for move in moves), 4),
            transfer_bytes=moves[0]["bytes"],
            loaded_blocks=moves[0]["blocks"],
        )

    def _moved(self, tokens: int, address: str) -> dict[str, Any]:
        """The transfer alone, of another prompt: a stream cannot tell of its own."""
        prompt = self._prompt(tokens)
        self._giver.complete(prompt, tokens=1, **_asking())
        source = {"address": address, "block_first": 0, "block_end": tokens // BLOCK_TOKENS}
        transfer: dict[str, Any] = self._told(self._taker.complete(prompt, tokens=1, **_asking(source)))["transfers"][0]
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

    def _told(self, answer: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = answer["kv_transfer_params"]["homing"]
        return told

    def _prompt(self, tokens: int) -> list[int]:
        return [self._rng.choice(VOCABULARY) for _ in range(tokens)]


def _asking(*sources: dict[str, Any]) -> dict[str, Any]:
    return {"kv_transfer_params": {"homing": {"sources": list(sources), "publish": {"lease_s": 60}}}}


def machine() -> dict[str, Any]:
    """Where this was measured."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "vllm": VLLM,
        "torch": TORCH,
        "load_1min": round(os.getloadavg()[0], 2),
    }


def measure(short: bool, repeats: int) -> list[Row]:
    """All rows."""
    lengths, links = (SHORT_LENGTHS, SHORT_LINKS) if short else (LENGTHS, LINKS)
    options = EngineOptions(kv=homing_kv(store_bytes=2 << 30, pull_timeout_s=120), context_tokens=4096 + BLOCK_TOKENS)
    with tempfile.TemporaryDirectory() as folder, wan_thread() as wan:
        engines = [VllmEngine(Path(folder), name, options) for name in ("giver", "taker")]
        try:
            for engine in engines:
                engine.start(wait=False)
            for engine in engines:
                engine.wait()
            bench = Bench(*engines, wan)
            return [bench.row(tokens, *link, repeats) for link in links for tokens in lengths]
        finally:
            for engine in engines:
                engine.kill()


def show(rows: list[Row]) -> None:
    """The table."""
    table = Table("link", "tokens", "recompute s", "fetch s", "of it moving s", "MB", title="Time to first token")
    for row in rows:
        link = f"{row.bits_per_s / 1e9:g} Gbit/s, {row.delay_s * 1e3:g} ms"
        cells = (row.recompute_ttft_s, row.fetch_ttft_s, row.transfer_s)
        table.add_row(
            link, str(row.prompt_tokens), *(f"{cell:.3f}" for cell in cells), f"{row.transfer_bytes / 1e6:.1f}"
        )
    Console().print(table)


def main() -> None:
    """Run, print the table, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="two lengths, two links, one repeat")
    parser.add_argument("--repeats", type=int, default=3, help="measured answers per cell")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "vllm_moves.json")
    options = parser.parse_args()
    before = machine()
    rows = measure(options.short, 1 if options.short else options.repeats)
    show(rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": before, "short": options.short, "rows": [asdict(row) for row in rows]}
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
