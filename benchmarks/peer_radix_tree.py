"""NVIDIA Dynamo's RadixTree and block hashes on the workload of bench_core.py; prints its rows as JSON.

Runs in an environment of its own that has the package ai-dynamo-runtime:

    python benchmarks/bench_core.py --peer-python /path/to/that/bin/python
"""

import argparse
import json
import time
from importlib.metadata import version

from dynamo._core import RadixTree, compute_block_hash_for_seq
from prefix_workload import Stored, documents, events, micros, prompts, rate_row, row

PEER = f"Dynamo {version('ai-dynamo-runtime')}"


def encoded(number: int, event: Stored) -> bytes:
    """An event in the JSON that the binding takes."""
    blocks = [{"block_hash": k, "tokens_hash": h} for k, h in zip(event.keys, event.hashes, strict=True)]
    return json.dumps(
        {"event_id": number, "data": {"stored": {"parent_hash": event.parent, "blocks": blocks}}}
    ).encode()


def filled(ready: list[tuple[int, bytes]]) -> tuple[RadixTree, float]:
    """A tree that was told everything, and the seconds that it took; a match waits until all is applied."""
    tree = RadixTree()
    start_s = time.perf_counter()
    for worker, event in ready:
        tree.apply_event(worker, event)
    tree.find_matches([0])
    return tree, time.perf_counter() - start_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--fills", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", required=True)
    options = parser.parse_args()
    docs = documents(options.documents)
    ready = [(event.worker, encoded(number, event)) for number, event in enumerate(events(docs))]
    told = sum(len(event.keys) for event in events(docs))
    fills = [filled(ready) for _ in range(options.fills)]
    tree = fills[-1][0]
    rows = [rate_row(f"stored events of 16 blocks: {PEER}", told, [seconds for _, seconds in fills])]
    samples: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for prompt in prompts(docs):
            samples.setdefault(prompt.name, []).append(micros(lambda p=prompt: tree.find_matches(p.hashes)))
    for prompt in prompts(docs):
        found = {worker: depth for (worker, _), depth in tree.find_matches(prompt.hashes).scores.items()}
        assert found == prompt.answer, prompt.name
    rows += [row(f"{name}: {PEER}", taken) for name, taken in samples.items()]
    for tokens in options.prompt_tokens:
        ids = list(range(tokens))
        assert len(compute_block_hash_for_seq(ids, 16)) == tokens // 16
        taken = [micros(lambda ids=ids: compute_block_hash_for_seq(ids, 16)) for _ in range(options.rounds * 4)]
        rows.append(row(f"hash {tokens // 1024}k tokens: {PEER}, local hashes", taken))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
