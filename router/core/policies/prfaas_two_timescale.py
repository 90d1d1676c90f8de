"""Prefill as a service with both of its loops: the threshold moves in seconds, nodes change roles in minutes."""

from collections.abc import Sequence
from random import Random

from ..commands import Command
from ..events import Event
from ..question import Question
from ..types import Plan, Role, WorkerId
from .options import AtLeastOne, NotNegative, Positive, Share
from .prfaas_clusters import Clusters, route
from .prfaas_control import Converter, Egress, Stages, Threshold
from .watching import sent


class PrfaasTwoTimescale:
    """PrfaaS-PD (arXiv 2604.15039, section 3.4) with dual-timescale scheduling.

    *Short term*, every `adjust_every_s`: where the prefill cluster's egress is used above `utilisation_high`, or its
    queue surges, the threshold goes up by `step`; where the local prefill queue surges, down; else back to its base.
    Bandwidth is abundant below `utilisation_low` and scarce above `utilisation_high`, and stays what it was between.
    *Base*, every `search_every_s`: the threshold at which neither cluster nor link is loaded more than need be, on the
    recent incremental lengths and the learned speeds. *Long term*, every `convert_every_s`: a local node is wished from
    prefill to decode when decode is full while prefill idles, and back when it is the other way round.

    Sees the exact index, queues and use per stage, bytes shipped, link capacities and prefill speeds. Published are the
    rules; every number but the first threshold is ours: the paper says "approaches a threshold or queuing surges". A
    surge is a mean queue of `surge_s` and twice that of the other stage.
    """

    name = "prfaas-two-timescale"

    def __init__(
        self,
        *,
        threshold_tokens: Positive = 19_400,
        prefill_site: str = "",
        adjust_every_s: Positive = 5.0,
        utilisation_high: Share = 0.8,
        utilisation_low: Share = 0.5,
        surge_s: Positive = 2.0,
        step: AtLeastOne = 1.25,
        search_every_s: Positive = 60.0,
        convert_every_s: Positive = 300.0,
        decode_full: Share = 0.9,
        decode_idle: NotNegative = 0.5,
    ) -> None:
        self._prefill_site = prefill_site
        self._adjust_every_s = adjust_every_s
        self._search_every_s = search_every_s
        self._high, self._low = utilisation_high, utilisation_low
        self._surge_s = surge_s
        self.threshold = Threshold(threshold_tokens, step)
        self.egress = Egress(2 * adjust_every_s)
        self.converter = Converter(convert_every_s, surge_s, decode_full, decode_idle)
        self.abundant = True
        self._next_adjust_s = 0.0
        self._next_search_s = search_every_s

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """Far for long prompts, near for short ones, by the threshold of the moment."""
        now = question.pricer.now
        if now >= self._next_adjust_s:
            self._next_adjust_s = now + self._adjust_every_s
            self._control(question, now)
        return route(
            question,
            Clusters.of(question, self._prefill_site),
            prefill_site=self._prefill_site,
            threshold_tokens=self.threshold.tokens,
            abundant=self.abundant,
        )

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Note incremental lengths and what leaves the prefill cluster."""
        self.egress.note(event, commands)
        for decision in sent(commands):
            self.threshold.note(decision.plan.estimate.computed_tokens)
            self.egress.sent(decision, now)

    def wishes(self, now: float) -> list[tuple[WorkerId, Role, str]]:
        """Which local node should change its role, and why; each wish is told once."""
        return self.converter.wishes(now)

    def _control(self, question: Question, now: float) -> None:
        stages = Stages.of(question, self._prefill_site)
        used = self.egress.utilisation(question, stages.sites, now)
        self.converter.sample(stages, now)
        if used < self._low or used > self._high:
            self.abundant = used < self._low
        if now >= self._next_search_s:
            self._next_search_s = now + self._search_every_s
            self.threshold.search(question, stages, self.egress.bytes_per_s(question, stages.sites) * self._high)
        far_surges = stages.prfaas_queue_s > max(self._surge_s, 2 * stages.local_queue_s)
        near_surges = stages.local_queue_s > max(self._surge_s, 2 * stages.prfaas_queue_s)
        if used > self._high or far_surges:
            self.threshold.raise_()
        elif near_surges:
            self.threshold.lower()
        else:
            self.threshold.relax()
