"""Everything that happened in the demo, as JSON: what was shown, and what `homing sim live` needs to simulate it.

Times are in seconds since the first request was sent, as its sender saw them. Blocks are numbered as they first appear,
prompt and answer together: equal numbers, equal text from the beginning on.
"""

import json
from dataclasses import asdict
from os import cpu_count
from pathlib import Path
from typing import Any

from homing.protos import router_pb2
from homing.router.core.blocks import block_keys, pack_tokens
from homing.router.service.config import Config
from homing.workers.model.hf import read_hf_config
from homing.workers.model.sources import TinySource, resolve

from .fleet import BELIEVED_BYTES_PER_S, BELIEVED_RTT_S, TRUE_LINKS
from .play import Played
from .report import LearnedLink, kind_of, moved_bytes, summary, where_of
from .speed import Speed


def write_json(
    path: Path, *, played: list[Played], links: list[LearnedLink], fleet: dict[str, Any], speed: Speed
) -> None:
    """Write it all; the keys of requests and fleet are those that `sim.validate.recording` reads."""
    told = {
        "summary": summary(played),
        "requests": _requests(played, fleet["model"]["block_tokens"]),
        "links": [asdict(link) for link in links],
        "fleet": fleet,
        "speed": asdict(speed),
        "cores": cpu_count(),
    }
    path.write_text(json.dumps(told, indent=2) + "\n")


def fleet_facts(
    config: Config, source: str, joined: router_pb2.GetFleetReply, true_bytes_per_s: dict[tuple[str, str], float]
) -> dict[str, Any]:
    """The demo's world as it is, and what its router was told: links by its file, speeds by the workers."""
    seen = {view.id: view for view in joined.workers}
    model = {
        "block_tokens": config.workers[0].block_tokens,
        "bytes_per_token": joined.workers[0].kv_bytes_per_token,
        "layers": _layers(source),
    }
    workers = [
        {
            "id": worker.id,
            "site": worker.site,
            "role": worker.role,
            "kv_blocks": worker.kv_blocks_max,
            "requests_max": worker.requests_max,
            "step_tokens_max": worker.step_tokens_max,
            "told_prefill_abq_s": [getattr(seen[worker.id], f"prefill_{name}_s") for name in "abq"],
        }
        for worker in config.workers
    ]
    links = [
        {
            "source": one,
            "target": other,
            "bytes_per_s": true_bytes_per_s[one, other],
            "rtt_s": rtt_s,
            "believed_bytes_per_s": BELIEVED_BYTES_PER_S[one, other],
            "believed_rtt_s": BELIEVED_RTT_S,
        }
        for one, other, _, rtt_s in TRUE_LINKS
    ]
    router = {"site": config.router.site, "policy": config.policy.name, "options": config.policy.options}
    return {"router": router, "model": model, "workers": workers, "links": links}


def _layers(source: str) -> int:
    found = resolve(source)
    if isinstance(found, TinySource):
        from homing.workers.model.tiny import TINY_CONFIG

        return TINY_CONFIG.layers
    return read_hf_config(found.directory).layers


def _requests(played: list[Played], block_tokens: int) -> list[dict[str, Any]]:
    numbers: dict[int, int] = {}
    began_s = played[0].sent_s
    rows = []
    for one in played:
        assert one.summary is not None
        assert one.decision is not None
        keys = block_keys(pack_tokens(one.prompt + one.tokens), block_tokens)
        rows.append(
            {
                "request": one.step.name,
                "when": one.step.when.value,
                "sent_s": one.sent_s - began_s,
                "first_token_s": one.first_token_s - began_s,
                "ended_s": one.ended_s - began_s,
                "plan": kind_of(one),
                "where": where_of(one),
                "prefill": one.decision.plan.prefill,
                "decode": one.decision.plan.decode,
                "predicted_ttft_s": one.summary.predicted_ttft_s,
                "ttft_s": one.summary.ttft_s,
                "recomputed_ttft_s": one.recomputed_ttft_s,
                "prompt_tokens": one.summary.prompt_tokens,
                "hit_tokens": one.summary.hit_tokens,
                "moved_bytes": moved_bytes(one),
                "transfers": [[done.bytes, done.lasted_s, done.flowing_s] for done in one.summary.transfers],
                "computed": [
                    [part.computed_from_tokens, part.computed_to_tokens, part.compute_s]
                    for part in one.summary.prefills
                ],
                "max_output_tokens": one.step.max_output_tokens,
                "same_tokens": one.same_tokens,
                "tokens": one.tokens,
                "blocks": [numbers.setdefault(key, len(numbers)) for key in keys],
            }
        )
    return rows
