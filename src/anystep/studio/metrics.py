"""What a monitor reads at `/metrics`, in Prometheus' format."""

import time
from collections.abc import Sequence

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from anystep.environment import resident_bytes
from anystep.studio.draw import Drawn
from anystep.studio.engine import Engine
from anystep.studio.job import Event, Failed, Job

LATENCIES = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)  # seconds


class Metrics:
    """Counts of an engine. Names end in their units; steps are told as powers of two, which bounds their number."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self.images = Counter("anystep_images", "Images by how they ended.", ["model", "outcome"], registry=registry)
        self.latency = Histogram(
            "anystep_latency_seconds", "From the request to the image, by the steps asked for, rounded up.",
            ["model", "steps"], buckets=LATENCIES, registry=registry,
        )  # fmt: skip
        self.evaluations = Counter(
            "anystep_network_evaluations", "Network evaluations (NFE) of images that were drawn.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.batches = Histogram(
            "anystep_batch_images", "Images that were drawn together.", buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )  # fmt: skip
        for name, told, value in (
            ("anystep_queue_length", "Images that wait.", lambda: engine.waiting),
            ("anystep_running_images", "Images that are being drawn.", lambda: engine.running),
            ("anystep_memory_bytes", "Memory of the process.", resident_bytes),
            ("anystep_device_memory_bytes", "Memory allocated on the device.", _device_memory),
        ):
            Gauge(name, told, registry=registry).set_function(value)

    def on_drawn(self, images: Sequence[Drawn]) -> None:
        """Count a batch."""
        self.batches.observe(len(images))
        for image in images:
            self.evaluations.labels(image.request.model).inc(image.nfe)

    def on_event(self, job: Job, event: Event) -> None:
        """Count how a job ended."""
        if isinstance(event, Drawn):
            self.images.labels(job.request.model, "drawn").inc()
            steps = 1 << (job.request.steps - 1).bit_length()
            self.latency.labels(job.request.model, str(steps)).observe(time.monotonic() - job.submitted)
        elif isinstance(event, Failed):
            self.images.labels(job.request.model, type(event.reason).__name__).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


def _device_memory() -> float:
    return float(torch.cuda.memory_allocated()) if torch.cuda.is_available() else 0.0
