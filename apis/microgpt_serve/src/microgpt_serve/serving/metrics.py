"""Metrics for Prometheus.

The supervisor of several workers sets PROMETHEUS_MULTIPROC_DIR, so that each worker reports the sum
over all workers.
"""

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

__all__ = [
    "BATCH_SIZE",
    "COMPLETION_TOKENS",
    "CONTENT_TYPE_LATEST",
    "DURATION",
    "FIRST_TOKEN",
    "IN_FLIGHT",
    "PREFIX_HITS",
    "PREFIX_TOKENS",
    "PROMPT_TOKENS",
    "QUEUED",
    "QUEUE_WAIT",
    "REJECTED",
    "REQUESTS",
    "TOKENS_PER_SECOND",
    "exposition",
]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

REQUESTS = Counter("microgpt_requests", "Requests answered.", ["route", "method", "status"])
DURATION = Histogram(
    "microgpt_request_seconds", "Time from request to end of response.", ["route"], buckets=BUCKETS
)
IN_FLIGHT = Gauge("microgpt_in_flight", "Generations in progress.", multiprocess_mode="livesum")
QUEUED = Gauge("microgpt_queued", "Requests waiting for a place.", multiprocess_mode="livesum")
BATCH_SIZE = Gauge(
    "microgpt_batch_size", "Texts that grow together.", ["model"], multiprocess_mode="livesum"
)
TOKENS_PER_SECOND = Gauge(
    "microgpt_tokens_per_second",
    "Tokens of the latest turn by its time; 0 at rest.",
    ["model"],
    multiprocess_mode="livesum",
)
PREFIX_HITS = Counter("microgpt_prefix_hits", "Prompts that began like one read before.")
PREFIX_TOKENS = Counter("microgpt_prefix_tokens", "Tokens of prompts that were not read again.")
QUEUE_WAIT = Histogram("microgpt_queue_wait_seconds", "Time in the queue.", buckets=BUCKETS)
FIRST_TOKEN = Histogram(
    "microgpt_time_to_first_token_seconds",
    "Time from request to first token of a stream.",
    buckets=BUCKETS,
)
PROMPT_TOKENS = Counter("microgpt_prompt_tokens", "Tokens of prompts.")
COMPLETION_TOKENS = Counter("microgpt_completion_tokens", "Tokens generated.")
REJECTED = Counter("microgpt_rejected", "Requests rejected.", ["reason"])
for _reason in ("busy", "key", "rate"):
    REJECTED.labels(_reason)  # exposed as 0 from the start, so that a rate sees the first one


def exposition() -> bytes:
    """Return all metrics in the text format of Prometheus."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
