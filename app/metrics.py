"""Counters and timings of a server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "requests", "Answers by status and code", ["status", "code"], registry=self._registry
        )
        self.seconds = Histogram(
            "stage_seconds", "Time by stage of a request", ["stage"], registry=self._registry, buckets=BUCKETS
        )

        self.batches = Histogram(
            "batch_size", "Photos computed together", registry=self._registry, buckets=(1, 2, 3, 4)
        )
        self.in_flight = Gauge("inside", "Photos that wait or are being predicted", registry=self._registry)

        self.model = Info("model", "The model that is served", registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in the text exposition format."""
        return generate_latest(self._registry)
