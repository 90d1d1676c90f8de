"""The demo's world: three sites, five workers, and the links between them, as they are and as the router is told.

Two small sites have little KV memory each; long prompts go to a prefill pool in one of them and decode in a third site.
The router's beliefs about links are wrong on purpose, too quick or too slow: what it knows at the end, it learned.
"""

from dataclasses import dataclass
from typing import Any

import yaml

from homing.router.service.config import Config, parse_config
from homing.workers.emulation import EmulatedLink, Wan

from .ports import free_ports

HOME = "amsterdam"
ROUTER_ID = "router"

TRUE_LINKS = (
    ("amsterdam", "frankfurt", 0.45, 0.010),
    ("frankfurt", "virginia", 0.60, 0.090),
    ("amsterdam", "virginia", 0.80, 0.080),
)
"""(one end, other end, time to move a token's KV as a part of the time to compute it, round trip in seconds).

The rates are set when the workers have measured their speed, so that fetching and computing compete on any machine.
"""
BYTES_PER_S_RANGE = (2e6, 150e6)
"""What the emulation may be asked to carry."""
BELIEVED_BYTES_PER_S = {
    ("amsterdam", "frankfurt"): 100e6,
    ("frankfurt", "virginia"): 25e6,
    ("amsterdam", "virginia"): 15e6,
}
BELIEVED_RTT_S = 0.030


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One worker of the demo."""

    id: str
    site: str
    role: str
    has_much_memory: bool
    requests_max: int


PLACES = (
    Place(id="ams-1", site="amsterdam", role="both", has_much_memory=False, requests_max=1),
    Place(id="fra-1", site="frankfurt", role="both", has_much_memory=False, requests_max=1),
    Place(id="fra-p", site="frankfurt", role="prefill", has_much_memory=True, requests_max=4),
    Place(id="vir-d1", site="virginia", role="decode", has_much_memory=True, requests_max=1),
    Place(id="vir-d2", site="virginia", role="decode", has_much_memory=True, requests_max=1),
)
REFERENCE = "ams-1"
"""The worker whose speed the links are scaled to."""


def emulated_links() -> list[EmulatedLink]:
    """Both directions of every link, as slow as can be until `scale_links`."""
    return [
        EmulatedLink(source=source, target=target, bytes_per_s=BYTES_PER_S_RANGE[0], delay_s=rtt_s / 2)
        for one, other, _, rtt_s in TRUE_LINKS
        for source, target in ((one, other), (other, one))
    ]


def scale_links(wan: Wan, bytes_per_token: int, compute_s_per_token: float) -> dict[tuple[str, str], float]:
    """Set every link's rate by what computing takes here; returns the true bytes per second."""
    true = {}
    slowest, quickest = BYTES_PER_S_RANGE
    for one, other, share, _ in TRUE_LINKS:
        rate = min(max(bytes_per_token / (share * compute_s_per_token), slowest), quickest)
        for pair in ((one, other), (other, one)):
            wan.set_rate(*pair, rate)
            true[pair] = rate
    return true


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """KV blocks of the small sites, which hold the script's middling prompts but not its longest, and of the others."""

    small_blocks: int
    large_blocks: int


async def lay_out(wan: Wan, model: str, memory: Memory) -> Config:
    """Choose ports, open a gateway for every pair that has to talk across sites, and write it all into one config."""
    ports = iter(free_ports(2 + 2 * len(PLACES)))
    router, http = f"127.0.0.1:{next(ports)}", f"127.0.0.1:{next(ports)}"
    sites = sorted({place.site for place in PLACES})
    workers = []
    for place in PLACES:
        control, data = next(ports), next(ports)
        far = [site for site in sites if site != place.site]
        workers.append(
            {
                "id": place.id,
                "site": place.site,
                "model": model_name(model),
                "source": model,
                "role": place.role,
                "threads": 1,
                "kv_blocks_max": memory.large_blocks if place.has_much_memory else memory.small_blocks,
                "requests_max": place.requests_max,
                "step_tokens_max": 512,
                "listen": f"127.0.0.1:{control}",
                "data_port": data,
                "routers": [router if place.site == HOME else await _gateway(wan, place.site, HOME, router)],
                "address_from": {site: await _gateway(wan, site, place.site, f"127.0.0.1:{control}") for site in far},
                "data_address_from": {site: await _gateway(wan, site, place.site, f"127.0.0.1:{data}") for site in far},
            }
        )
    return parse_config(yaml.safe_dump(_config(model, router, http, sites, workers)), where="demo")


def model_name(source: str) -> str:
    """The name under which the demo's requests ask for the model."""
    return source.rstrip("/").rsplit("/", 1)[-1].replace(":", "-").removesuffix(".gguf") or "model"


def _config(model: str, router: str, http: str, sites: list[str], workers: list[dict[str, Any]]) -> dict[str, Any]:
    links = [
        {"source": one, "target": other, "bytes_per_s": believed, "rtt_s": BELIEVED_RTT_S}
        for (one, other), believed in BELIEVED_BYTES_PER_S.items()
    ]
    return {
        "router": {"site": HOME, "listen": router, "http": http},
        "sites": [{"name": site} for site in sites],
        "links": links,
        "models": [{"name": model_name(model), "tokenizer": model}],
        "workers": workers,
    }


async def _gateway(wan: Wan, from_site: str, to_site: str, address: str) -> str:
    host, _, port = address.rpartition(":")
    gateway_host, gateway_port = await wan.open_gateway(from_site, to_site, host, int(port))
    return f"{gateway_host}:{gateway_port}"
