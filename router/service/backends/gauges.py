"""What is true of engines at the moment of a scrape."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from homing.router.core.types import Trust

from ..door.hits import Hits
from .watch import Backend

_KV_COUNTS = {
    "homing_kv_event_batches": ("batches", "Batches of KV events."),
    "homing_kv_event_stream_gaps": ("gaps", "Gaps in the numbers of KV event batches."),
    "homing_kv_event_restarts": ("restarts", "Publishers that began anew."),
    "homing_kv_event_clears": ("clears", "Times that a cache was forgotten because it was not known."),
    "homing_kv_event_replays": ("replays", "Replays that were asked for, of quiet publishers too."),
    "homing_kv_event_replays_failed": ("replays_failed", "Replays that did not bring what was missing."),
    "homing_kv_event_unreadable": ("unreadable", "Batches that could not be read."),
}


class BackendGauges(Collector):
    """Trust, KV events and prefix hits."""

    def __init__(self, backends: Iterable[Backend], hits: Hits) -> None:
        self._backends = backends
        self._hits = hits

    def collect(self) -> Iterator[Metric]:
        """Every family, for the registry."""
        up = GaugeMetricFamily("homing_backend_up", "Whether an engine is there.", labels=["backend"])
        trust = GaugeMetricFamily(
            "homing_worker_trust", "How far a worker's cache is known: 1 for what holds.", labels=["worker", "trust"]
        )
        lag = GaugeMetricFamily("homing_kv_event_lag_seconds", "Of the last batch of KV events.", labels=["worker"])
        orphans = GaugeMetricFamily("homing_kv_event_orphans", "Blocks of unknown parents.", labels=["worker"])
        counts = {name: CounterMetricFamily(name, text, labels=["worker"]) for name, (_, text) in _KV_COUNTS.items()}
        for backend in self._backends:
            up.add_metric([backend.name], float(bool(backend.workers)))
            for worker, (known, _, source) in backend.sources().items():
                for each in Trust:
                    trust.add_metric([worker, each.value], float(each is known))
                if source is None:
                    continue
                stats = source.stats()
                lag.add_metric([worker], stats.lag_s)
                orphans.add_metric([worker], stats.orphans)
                for name, family in counts.items():
                    family.add_metric([worker], getattr(stats.stream, _KV_COUNTS[name][0]))
        families: list[Metric] = [up, trust, lag, orphans, *counts.values()]
        yield from families
        yield from self._hit_counts()

    def _hit_counts(self) -> Iterator[Metric]:
        hits = self._hits
        tokens = CounterMetricFamily(
            "homing_prefix_hit_tokens", "Cached prompt tokens, foretold and found.", labels=["side"]
        )
        tokens.add_metric(["foretold"], hits.predicted_tokens)
        tokens.add_metric(["found"], hits.found_tokens)
        yield tokens
        answers = CounterMetricFamily(
            "homing_prefix_hit_answers", "Answers that told what was cached.", labels=["agrees"]
        )
        answers.add_metric(["yes"], hits.agreed)
        answers.add_metric(["no"], hits.compared - hits.agreed)
        yield answers
