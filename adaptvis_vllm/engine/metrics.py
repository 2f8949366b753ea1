"""What `/metrics` says about steering.

Counted in the front end, where reports arrive and bad parameters are refused, in
prometheus_client's default registry as vLLM's own metrics are: with several API server
processes they share its multiprocess directory, and a scrape of any of them has the sum.

A choice of an `n` > 1 request counts for itself, as in `vllm:request_success_total`.
Requests that ask for nothing are not counted.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from prometheus_client import Counter, Histogram

from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.steering.report import MODE_CANDIDATES, MODE_OFF, NO_IMAGE, NO_VIDEO

REQUESTS = "adaptvis_requests"
CONFIDENCE = "adaptvis_confidence"
SIDE_ROWS = "adaptvis_side_rows"
REFUSED = "adaptvis_refused_requests"
UNKNOWN = "unknown"  # REFUSED's parameter for names that do not exist
BUCKETS = tuple(i / 20 for i in range(1, 21))

# mode, branch, reason of every report.
KINDS = (
    ("adaptive", "low", ""),
    ("adaptive", "high", ""),
    ("adaptive", "none", NO_IMAGE),
    ("adaptive", "none", NO_VIDEO),
    ("scaling", "given", ""),
    ("scaling", "none", NO_IMAGE),
    ("scaling", "none", NO_VIDEO),
    ("candidates", "none", MODE_CANDIDATES),
    ("candidates", "none", NO_IMAGE),
    ("candidates", "none", NO_VIDEO),
    ("off", "none", MODE_OFF),
)


class _Metrics:
    """Created once a process, with every series that can occur at 0."""

    def __init__(self) -> None:
        labels = ("mode", "branch", "reason")
        self.requests = Counter(REQUESTS, "Finished requests by what steering did.", labels)
        self.confidence = Histogram(
            CONFIDENCE, "Confidence of adaptively steered requests.", buckets=BUCKETS
        )
        self.side_rows = Counter(SIDE_ROWS, "Rows computed beside those of the batch.")
        self.refused = Counter(REFUSED, "Requests refused for a bad parameter.", ("parameter",))
        for kind in KINDS:
            self.requests.labels(*kind)
        for name in (*SteeringParams.__dataclass_fields__, UNKNOWN):
            self.refused.labels(name)


get = cache(_Metrics)


def count_finished(report: dict[str, Any], branch: str) -> None:
    """report: as it goes out. branch: "low", "high", "given" or "none"."""
    metrics = get()
    metrics.requests.labels(report["mode"], branch, report["reason"] or "").inc()
    if report["mode"] == "candidates":
        metrics.side_rows.inc(len(report["candidates"]))
    elif report["confidence"] is not None:
        metrics.confidence.observe(report["confidence"])
        metrics.side_rows.inc(2)


def count_refused(field: str) -> None:
    """field: of `SteeringParams`; "" for a name that does not exist."""
    get().refused.labels(field or UNKNOWN).inc()


def totals() -> dict[str, Any]:
    """The same figures, of all API server processes, for JSON."""
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    out: dict[str, Any] = {"requests": [], "side_rows": 0, "refused": {}}
    for family in get_prometheus_registry().collect():
        for sample in family.samples:
            value = int(sample.value)
            if sample.name == f"{REQUESTS}_total" and value:
                out["requests"].append({**sample.labels, "count": value})
            elif sample.name == f"{SIDE_ROWS}_total":
                out["side_rows"] = value
            elif sample.name == f"{REFUSED}_total" and value:
                out["refused"][sample.labels["parameter"]] = value
    return out
