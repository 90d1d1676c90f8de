"""llama.cpp: a slot's KV is saved to a file by one server and restored by another, on a folder that both share.

Only the prompts of slots that the router assigned itself are known, so every request is given a slot (`id_slot`) as
long as one is free. A server looks at what a slot holds before it uses it: a wrong guess costs time, never an answer.
The folder holds at most one file for each slot. Saving and restoring wait for a slot that computes, hence only slots
that are free in the router's book take part.
"""

import asyncio
from hashlib import blake2s
from weakref import WeakValueDictionary

from homing.router.core.policies.options import Positive
from homing.router.core.types import PlanKind
from homing.router.engines.types import EngineError, Patch

from .slots import SlotBook
from .types import Order, Peer, Post, Prepared
from .way import Way, address, longest_move, number


class LlamaCpp(Way):
    """`slot_folder` names the folder that servers share (`--slot-save-path`): KV goes between those that name the same.
    `slots` is a server's number of slots (`--parallel`).
    """

    name = "llama_cpp"
    plans = frozenset({PlanKind.LOCAL, PlanKind.FETCH, PlanKind.DIRECT})
    kv_keys = frozenset({"slot_folder", "slots"})
    prepares_local = True

    def __init__(self, *, timeout_s: Positive = 10.0) -> None:
        super().__init__(timeout_s=timeout_s)
        self._book = SlotBook()
        self._files: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def ended(self, request_id: str) -> None:
        """The request's slot is free again."""
        self._book.give_back(request_id)

    async def _local(self, order: Order) -> Prepared:
        slot = self._take(order)
        return Prepared() if slot is None else Prepared(patch=_pinned(slot))

    async def _move(self, order: Order, post: Post) -> Prepared:
        try:
            return await self._fetch(order, post)
        except (EngineError, asyncio.CancelledError):
            self._book.give_back(order.request_id)
            self._book.forget(order.decode.worker)
            raise

    async def _fetch(self, order: Order, post: Post) -> Prepared:
        source = order.peers[longest_move(order, order.decode).source]
        held, shared = self._book.holder(source.worker, order.tokens)
        if address(source, "slot_folder") != address(order.decode, "slot_folder"):
            raise EngineError(f"{source.worker} and {order.decode.worker} share no slot_folder")
        if shared < order.block_tokens:
            raise EngineError(f"{source.worker}: no free slot is known to hold this prompt")
        slot = self._take(order)
        if slot is None:
            raise EngineError(f"{order.decode.worker}: no slot is free")
        try:
            await self._carry(source, held, order.decode, slot, post)
        except TimeoutError:
            raise EngineError(f"{source.worker}: moving a slot took more than {self._timeout_s:g} s") from None
        return Prepared(patch=_pinned(slot))

    async def _carry(self, source: Peer, held: int, target: Peer, slot: int, post: Post) -> None:
        """Save one slot and restore it in another. The file is this move's alone from saving to restoring."""
        file = f"homing-{blake2s(source.worker.encode(), digest_size=8).hexdigest()}-{held}.bin"
        lock = self._files.setdefault(file, asyncio.Lock())
        async with asyncio.timeout(self._timeout_s), lock:
            await _act(source, held, "save", file, "n_saved", post, self._timeout_s)
            await _act(target, slot, "restore", file, "n_restored", post, self._timeout_s)

    def _take(self, order: Order) -> int | None:
        """A slot of the decode worker. None leaves the choice to the server: what was known of its slots is void."""
        self._book.give_back(order.request_id)
        worker = order.decode
        pinned = order.tokens and "id_slot" not in order.body and worker.kv.get("slots")
        slot = (
            self._book.take(worker.worker, number(worker, "slots"), order.request_id, order.tokens) if pinned else None
        )
        if slot is None:
            self._book.forget(worker.worker)
        return slot


def _pinned(slot: int) -> Patch:
    return Patch(body={"id_slot": slot, "cache_prompt": True})


async def _act(peer: Peer, slot: int, action: str, file: str, counted: str, post: Post, timeout_s: float) -> None:
    answer = await post(peer, f"/slots/{slot}?action={action}", {"filename": file}, {}, timeout_s)
    if not isinstance(answer.get(counted), int) or answer[counted] < 1:
        raise EngineError(
            f"{peer.worker}: {action} of slot {slot} told of no tokens ({counted}: {answer.get(counted)!r})"
        )
