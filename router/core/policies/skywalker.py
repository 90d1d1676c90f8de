"""SkyWalker: push to a replica only while it has nothing pending, near before far, by the approximate prefix."""

from collections.abc import Iterable, Sequence
from random import Random

from ..commands import Command
from ..events import Event, WorkerJoined
from ..fleet import WorkerState
from ..question import Question
from ..types import Plan, Site, WorkerId
from .baseline import fewest_requests, place, to_prefill
from .options import Count, Share
from .remembered import TREE_BLOCKS_MAX, Remembered
from .watching import gone, sent


class SkyWalker:
    """Selective pushing by pending requests with the prefix trie, "SP-P" (SkyWalker, EuroSys'26).

    Candidates are the replicas of the request's own region with no pending request, that is, none that is not yet in
    the running batch. Where there is none, a region with an available replica is chosen by the snapshot of what this
    region sent there, and a replica in it by that region's own trie. Where there is none either, the request waits
    here, first come first served. Among candidates the longest approximate prefix wins; when that is less than
    `hit_share_min` of the prompt, the one with the fewest requests. Decode workers: the fewest requests.

    Sees what was sent where, requests in flight and whether a replica has something pending. Does not see caches,
    evictions, lengths, speeds or bandwidth, and moves no KV. Inferred: a request's region is the nearest site; the
    first of the prompts promised to a worker is the one in its batch; a region's own queue (its tau) has no counterpart
    where one router queues for all; the size of the tries.
    """

    name = "skywalker"

    def __init__(self, *, hit_share_min: Share = 0.5, trie_blocks_max: Count = TREE_BLOCKS_MAX) -> None:
        self._hit_share_min = hit_share_min
        self.replicas = Remembered(trie_blocks_max)
        self.regions = Remembered(trie_blocks_max)
        self._sites: dict[WorkerId, Site] = {}

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The longest approximate prefix among those that are available; nobody while all have something pending."""
        prefillers = to_prefill(question)
        if prefillers and not any(_is_available(question, worker) for worker in prefillers):
            return []
        return place(question, lambda workers: self._pick(question, workers), pick_decode=fewest_requests(question))

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Remember what was sent to which replica and region, and forget who is gone."""
        if isinstance(event, WorkerJoined):
            self._sites[event.worker.id] = event.worker.site
        for worker in gone(event, commands):
            self.replicas.forget(worker)
            self._lose(worker)
        for decision in sent(commands):
            worker, keys = decision.plan.prefill, decision.request.block_keys
            self.replicas.sent(worker, keys)
            if worker in self._sites:
                self.regions.sent(self._sites[worker], keys)

    def _lose(self, worker: WorkerId) -> None:
        site = self._sites.pop(worker, None)
        if site is not None and site not in self._sites.values():
            self.regions.forget(site)

    def _pick(self, question: Question, workers: Sequence[WorkerState]) -> WorkerState:
        available = [worker for worker in workers if _is_available(question, worker)]
        home = _home(question)
        near = [worker for worker in available if worker.worker.site == home]
        if not near:
            site = self._region(question, available)
            near = [worker for worker in available if worker.worker.site == site]
        matched = self.replicas.match(question.request.block_keys)
        loads: dict[str, int] = {worker.worker.id: question.fleet.running(worker) for worker in near}
        best = self._best(question, loads, matched)
        return next(worker for worker in near if worker.worker.id == best)

    def _region(self, question: Question, available: Iterable[WorkerState]) -> str:
        loads: dict[str, int] = {}
        for worker in available:
            running = question.fleet.running(worker)
            loads[worker.worker.site] = min(running, loads.get(worker.worker.site, running))
        return self._best(question, loads, self.regions.match(question.request.block_keys))

    def _best(self, question: Question, loads: dict[str, int], matched: dict[str, int]) -> str:
        """The longest match, or the least load when no match is long enough; each breaks the ties of the other."""
        longest = max(matched.get(name, 0) for name in loads) * question.profile.block_tokens
        if longest >= self._hit_share_min * question.request.prompt_tokens:
            return min(loads, key=lambda name: (-matched.get(name, 0), loads[name]))
        return min(loads, key=lambda name: (loads[name], -matched.get(name, 0)))


def _is_available(question: Question, worker: WorkerState) -> bool:
    return question.fleet.ledger.queued_requests(worker.worker.id) <= 1 and not worker.foreign_tokens


def _home(question: Question) -> Site:
    """The site nearest to where the request came in, of those that have a replica at all."""
    pools = [(site, pool) for site, pool in sorted(question.pools().items()) if pool.by_bit]
    return min(pools, key=lambda item: question.pricer.network_s(next(iter(item[1].by_bit.values()))))[0]
