"""What is measured of a turn, and what a run of several turns comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass
class Turn:
    """One system's answer to all requests of one round.

    seconds: from the first request sent to the last answer done. ttft, itl: seconds, per
    request and per token after the first. passes: forward passes that held a token.
    scheduled: tokens in them. blocks: most KV cache blocks in use at once. peak_bytes: most
    memory of the process (of the GPU, where there is one). cpu_seconds: processor time of the
    process, which other work on the machine changes less than it does the clock's. Of HTTP
    servers these five are not known and 0. alphas: applied, in request order, None where there
    was none. parts: seconds by part of the step, if profiled.
    """

    seconds: float
    requests: int
    tokens: int
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    passes: int = 0
    scheduled: int = 0
    blocks: int = 0
    peak_bytes: int = 0
    cpu_seconds: float = 0.0
    alphas: list[float | None] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear between neighbours; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(turns: dict[str, list[Turn]], base: str = "vanilla") -> list[dict[str, Any]]:
    """One row of figures per system.

    Rates are medians over the rounds with their smallest and largest. The ratio to `base` is
    taken within each round, whose turns lie next to each other, and its median is given.
    Latencies in milliseconds, over all rounds. None: not known.
    """
    rows = []
    for name, mine in turns.items():
        rates = [t.rate for t in mine]
        first = mine[0]
        row: dict[str, Any] = {
            "system": name,
            "requests_per_s": median(rates),
            "requests_per_s_min": min(rates),
            "requests_per_s_max": max(rates),
            "cpu_s": median(t.cpu_seconds / t.requests for t in mine) or None,
            "tokens_per_s": median(t.tokens / t.seconds for t in mine),
        }
        if base in turns:
            ratios = [a.rate / b.rate for a, b in zip(mine, turns[base], strict=True)]
            row |= {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
            if all(t.cpu_seconds for t in (*mine, *turns[base])):
                row["cpu_ratio"] = median(
                    b.cpu_seconds / b.requests / (a.cpu_seconds / a.requests)
                    for a, b in zip(mine, turns[base], strict=True)
                )
        for kind in ("ttft", "itl"):
            values = [v * 1e3 for t in mine for v in getattr(t, kind)]
            row |= {f"{kind}_p{p}_ms": percentile(values, p) for p in (50, 99)}
        row |= {
            "passes": median(t.passes for t in mine) / first.requests or None,
            "scheduled": median(t.scheduled for t in mine) / first.requests or None,
            "blocks": max(t.blocks for t in mine) or None,
            "peak_mib": max(t.peak_bytes for t in mine) / 2**20 or None,
        }
        rows.append(row)
    return rows


def ratio(turns: dict[str, list[Turn]], over: str, under: str) -> float:
    """Median over the rounds of requests/s of one system over those of another."""
    pairs = zip(turns[over], turns[under], strict=True)
    return median(a.rate / b.rate for a, b in pairs)


def as_json(turns: dict[str, list[Turn]]) -> dict[str, list[dict[str, Any]]]:
    """Latencies to the microsecond."""

    def plain(turn: Turn) -> dict[str, Any]:
        values = asdict(turn)
        return values | {k: [round(v, 6) for v in values[k]] for k in ("ttft", "itl")}

    return {name: [plain(t) for t in mine] for name, mine in turns.items()}
