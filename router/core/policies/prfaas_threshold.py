"""Prefill as a service with a static threshold: long prompts are computed in the prefill cluster, others at home."""

from random import Random

from ..question import Question
from ..types import Plan
from .options import NotNegative
from .prfaas_clusters import Clusters, route


class PrfaasThreshold:
    """The routing rule of PrfaaS-PD (arXiv 2604.15039, section 3.4) with t fixed, as in its case study: t = 19.4K.

    `l > t`: prefill in the prefill cluster, KV shipped to a local decode node; `l <= t`: local prefill. l is the
    incremental length, after the local cluster's cache, or, with `abundant`, after the longer of both caches, which is
    then transferred. The prefill cluster is `prefill_site`, by default each site whose workers only prefill.

    Sees the exact index and which node of a cluster would be done first (the paper says "cache-affine", no more).
    Does not price links, and does not adapt.
    """

    name = "prfaas-threshold"

    def __init__(
        self, *, threshold_tokens: NotNegative = 19_400, prefill_site: str = "", abundant: bool = False
    ) -> None:
        self._threshold_tokens = threshold_tokens
        self._prefill_site = prefill_site
        self._abundant = abundant

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """Far for long prompts, near for short ones."""
        return route(
            question,
            Clusters.of(question, self._prefill_site),
            prefill_site=self._prefill_site,
            threshold_tokens=self._threshold_tokens,
            abundant=self._abundant,
        )
