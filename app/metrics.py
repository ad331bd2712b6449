"""Counters and timings of a server, for Prometheus."""

from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

NAMESPACE: Final = "fastai_now"  # the beginning of every name
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Metrics:
    """The counters of one server. Those of its process have the names that all programs use (`process_`)."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own: Any = {"namespace": NAMESPACE, "registry": self._registry}
        self.requests = Counter("requests", "Answers by status and code", ["status", "code"], **own)
        self.seconds = Histogram(
            "stage_seconds", "Time by stage of a request", ["stage"], buckets=BUCKETS, **own
        )
        self.batches = Histogram("batch_size", "Photos computed together", buckets=(1, 2, 3, 4), **own)
        self.in_flight = Gauge("in_flight", "Photos that wait or are being predicted", **own)
        self.model = Info("model", "The versions that are open", ["name"], **own)

        linked = ["application", "model", "version"]
        self.answers = Counter(
            "answers", "Answers of applications: computed, cache, shared", [*linked, "source"], **own
        )
        self.defaults = Counter("defaults", "Default answers by their reason", [*linked, "reason"], **own)
        self.answer_seconds = Histogram(
            "answer_seconds", "Time to the answer of an application", linked, buckets=BUCKETS, **own
        )
        self.share = Gauge("link_share", "Share of the photos that a version is linked for", linked, **own)
        self.objective = Gauge(
            "objective_seconds", "Latency objective of an application; 0 for none", ["application"], **own
        )

    def text(self) -> bytes:
        """Return all metrics in the text exposition format."""
        return generate_latest(self._registry)
