"""The half in vLLM's scheduler: decides what a request loads and which blocks are kept, and tells what became of it.

What it knows of the store is what the worker's half reported: a block that gave way since is computed.

Rule 1: at least the last token of a prompt is computed.
Rule 2: a request's sources are asked once; when its blocks did not come, it is computed.
Rule 3: only blocks whose tokens are known and whose KV is whole after the step are kept.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from homing.router.core.blocks import block_keys, group_seed, pack_tokens, reusable_blocks
from homing.router.core.types import BlockKey

from .orders import LoadOrder, LoadResult, SaveOrder, StepOrders, StepReport
from .params import MoveParams, Transfer, handle, read_params
from .plan import Segment, plan_load

log = logging.getLogger(__name__)

NAMES_MAX = 1 << 16
LOADS_MAX = 3
"""How often one request may load: it comes back after a failure, and after every preemption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockName:
    """What an event tells of a block: its content, and the engine's own hashes of it and of the block before."""

    tokens: tuple[int, ...]
    engine_hash: Any
    engine_parent: Any
    lora: str | None
    salt: str | None


@dataclass(slots=True, kw_only=True)
class _Tracked:
    """A request that the engine works on."""

    request: Any
    params: MoveParams
    seed: int
    keys: list[BlockKey] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    saved: int = 0
    loads: int = 0
    loading: bool = False
    local_tokens: int = 0
    result: LoadResult | None = None
    transfers: list[Transfer] = field(default_factory=list)

    def extend_keys(self, block_tokens: int) -> None:
        """Name the blocks that have become full."""
        known = self.request.all_token_ids
        begun = len(self.keys) * block_tokens
        if len(known) - begun >= block_tokens:
            fresh = pack_tokens(list(known[begun:]))
            parent = self.keys[-1] if self.keys else None
            self.keys.extend(block_keys(fresh, block_tokens, seed=self.seed, parent=parent))


class SchedulerSide:
    """State by request; every method is called by vLLM's scheduler, one at a time."""

    def __init__(self, *, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._tracked: dict[str, _Tracked] = {}
        self._held: set[BlockKey] = set()
        self._names: OrderedDict[BlockKey, BlockName] = OrderedDict()
        self._loads: list[LoadOrder] = []
        self._cancelled: list[str] = []
        self._clear = False
        self._stored: list[BlockName] = []
        self._removed: list[Any] = []
        self._engine_hashes: dict[BlockKey, Any] = {}
        self.address = ""

    def matched_tokens(self, request: Any, local_tokens: int) -> int:
        """How many tokens behind the first `local_tokens` can be loaded. Changes nothing that is not a cache."""
        tracked = self._track(request)
        tracked.local_tokens = local_tokens
        segments = self._segments(tracked, local_tokens)
        return (segments[-1].end - segments[0].first) * self._block_tokens if segments else 0

    def allocated(self, request: Any, block_ids: Sequence[int], external_tokens: int) -> None:
        """The engine has blocks for the request; with `external_tokens` it waits for their load."""
        tracked = self._track(request)
        tracked.block_ids = list(block_ids)
        if external_tokens <= 0:
            return
        first = tracked.local_tokens // self._block_tokens
        end = first + external_tokens // self._block_tokens
        sources = tracked.params.sources if not tracked.loads else ()
        tracked.loads += 1
        tracked.loading = True
        self._name(tracked, range(first, end))
        self._loads.append(
            LoadOrder(
                request_id=request.request_id,
                ticket=tracked.params.ticket,
                first=first,
                keys=tuple(tracked.keys[first:end]),
                block_ids=tuple(block_ids[first:end]),
                sources=sources,
            )
        )

    def give_up(self, request_id: str, block_ids: Sequence[int]) -> None:
        """The engine waits for a load that could not be ordered: let it compute everything."""
        self._loads.append(LoadOrder(request_id=request_id, ticket="", first=0, keys=(), block_ids=tuple(block_ids)))

    def step_orders(self, output: Any) -> StepOrders:
        """What the worker's half has to do with this step."""
        orders = StepOrders(
            saves=self._saves(output), loads=tuple(self._loads), cancelled=tuple(self._cancelled), clear=self._clear
        )
        self._loads, self._cancelled, self._clear = [], [], False
        return orders

    def reported(self, report: StepReport) -> None:
        """Take in what changed in the store and which loads are over."""
        for key in report.removed:
            self._held.discard(key)
            engine_hash = self._engine_hashes.pop(key, None)
            if engine_hash is not None:
                self._removed.append(engine_hash)
        for key in report.dropped:
            self._names.pop(key, None)
        for key in report.stored:
            self._held.add(key)
            name = self._names.pop(key, None)
            if name is not None:
                self._engine_hashes[key] = name.engine_hash
                self._stored.append(name)
        for result in report.results:
            tracked = self._tracked.get(result.request_id)
            if tracked is not None:
                tracked.loading = False
                tracked.result = result
                tracked.transfers.extend(result.transfers)

    def finished(self, request: Any) -> dict[str, Any] | None:
        """Forget a request; what its answer tells the router."""
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is None:
            return None
        if tracked.loading:
            self._cancelled.append(request.request_id)
        if request.kv_transfer_params is None:
            return None
        keys = tracked.keys[: tracked.saved]
        held = next((i for i, key in enumerate(keys) if key not in self._held and key not in self._names), len(keys))
        loaded = tracked.result.blocks if tracked.result is not None else 0
        return handle(
            address=self.address,
            block_tokens=self._block_tokens,
            held_blocks=held,
            loaded_blocks=loaded,
            computed_from_tokens=tracked.local_tokens + loaded * self._block_tokens,
            transfers=tracked.transfers,
            ignored=tracked.params.ignored,
        )

    def take_events(self) -> tuple[list[BlockName], list[Any]]:
        """Names of blocks that came into the store, and the engine's hashes of those that went."""
        stored, removed = self._stored, self._removed
        self._stored, self._removed = [], []
        return stored, removed

    def clear(self) -> None:
        """Empty the store with the next step."""
        self._clear = True

    def _track(self, request: Any) -> _Tracked:
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            lora = request.lora_request.lora_name if request.lora_request is not None else ""
            params = read_params(request.kv_transfer_params)
            if params.ignored:
                log.warning("request %s: %s; nothing is moved for it", request.request_id, params.ignored)
            seed = group_seed(lora=lora, tenant_salt=request.cache_salt or "")
            tracked = _Tracked(request=request, params=params, seed=seed)
            self._tracked[request.request_id] = tracked
        if _is_plain(request):
            tracked.extend_keys(self._block_tokens)
        return tracked

    def _segments(self, tracked: _Tracked, local_tokens: int) -> tuple[Segment, ...]:
        if tracked.loads >= LOADS_MAX:
            return ()
        usable = reusable_blocks(len(tracked.request.all_token_ids), self._block_tokens)
        sources = tracked.params.sources if not tracked.loads else ()
        return plan_load(tracked.keys, local_tokens // self._block_tokens, usable, self._held, sources)

    def _saves(self, output: Any) -> tuple[SaveOrder, ...]:
        """What becomes whole in this step. Nothing is raised: the loads beside it must reach the worker."""
        try:
            self._follow_blocks(output)
            computed = self._computed(output).items()
            return tuple(order for request_id, tokens in computed if (order := self._save(request_id, tokens)))
        except Exception:
            log.exception("choosing blocks to keep failed; this step keeps none")
            return ()

    def _save(self, request_id: str, computed_tokens: int) -> SaveOrder | None:
        """Keep the blocks that are whole once `computed_tokens` are computed."""
        tracked = self._tracked.get(request_id)
        if tracked is None or not _is_plain(tracked.request):
            return None
        tracked.extend_keys(self._block_tokens)
        full = min(computed_tokens // self._block_tokens, len(tracked.keys), len(tracked.block_ids))
        first = tracked.saved
        if full <= first:
            return None
        tracked.saved = full
        self._name(tracked, range(first, full))
        return SaveOrder(
            keys=tuple(tracked.keys[:full]),
            first=first,
            block_ids=tuple(tracked.block_ids[first:full]),
            lease_s=tracked.params.lease_s,
        )

    def _name(self, tracked: _Tracked, positions: range) -> None:
        """Remember what an event will have to tell of blocks that are about to be stored."""
        request, size = tracked.request, self._block_tokens
        hashes = request.block_hashes
        lora = request.lora_request.lora_name if request.lora_request is not None else None
        for position in positions:
            key = tracked.keys[position]
            if key in self._held or position >= len(hashes):
                continue
            self._names[key] = BlockName(
                tokens=tuple(request.all_token_ids[position * size : (position + 1) * size]),
                engine_hash=hashes[position],
                engine_parent=hashes[position - 1] if position else None,
                lora=lora,
                salt=None if position else request.cache_salt,
            )
            self._names.move_to_end(key)
        while len(self._names) > NAMES_MAX:
            self._names.popitem(last=False)

    def _follow_blocks(self, output: Any) -> None:
        """Learn which blocks of the paged cache the scheduled requests have."""
        for new in output.scheduled_new_reqs:
            if new.req_id in self._tracked:
                self._tracked[new.req_id].block_ids = list(new.block_ids[0])
        cached = output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            tracked = self._tracked.get(request_id)
            if tracked is None or cached.new_block_ids[i] is None:
                continue
            fresh = list(cached.new_block_ids[i][0])
            if request_id in cached.resumed_req_ids:
                tracked.block_ids = fresh
            else:
                tracked.block_ids.extend(fresh)

    def _computed(self, output: Any) -> dict[str, int]:
        """How many tokens of each scheduled request are computed once the step is over."""
        cached = output.scheduled_cached_reqs
        before = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        before.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        return {id_: before[id_] + count for id_, count in output.num_scheduled_tokens.items() if id_ in before}


def _is_plain(request: Any) -> bool:
    """Whether the tokens say all of the content: images and embeddings are not in them."""
    return request.prompt_token_ids is not None and request.prompt_embeds is None and not request.mm_features
