"""What a calibration found: as tables, as a page, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adaptvis_vllm.evaluation.calibration.curves import reliability, risk_coverage
from adaptvis_vllm.evaluation.calibration.grid import adaptive_sums, thresholds
from adaptvis_vllm.evaluation.calibration.selection import Calibration, describe, points
from adaptvis_vllm.evaluation.calibration.sweep import Sweep
from adaptvis_vllm.evaluation.calibration.transfer import Result
from adaptvis_vllm.evaluation.methods import TITLES
from adaptvis_vllm.evaluation.page import Figure, Section, Table, render
from adaptvis_vllm.evaluation.results import percent, with_interval
from adaptvis_vllm.fields import CONFIDENCES


@dataclass(frozen=True)
class Outcome:
    """All of it. benchmark, split: what was calibrated on. transfers: by test split.

    facts: model, versions and the like.
    """

    benchmark: str
    split: str
    sweep: Sweep
    calibration: Calibration
    transfers: Mapping[str, Sequence[Result]]
    facts: Mapping[str, Any]


def validation_table(outcome: Outcome) -> Table:
    """A line per candidate."""
    found = outcome.calibration
    rows = [
        [
            TITLES[c.family],
            describe(c.params),
            percent(c.seen.value),
            with_interval(c.accuracy),
            percent(c.spread),
            "" if c.family == "base" else with_interval(c.gain, sign="+"),
        ]
        for c in found.candidates
    ]
    return Table(
        ["method", "best setting", "seen", "cross-validated", "spread", "gain"],
        rows,
        title=f"{outcome.split}: {len(outcome.sweep.table.ids)} questions",
        note="Percent. seen: on the questions that the setting was chosen on, so too good. "
        "cross-validated: settings chosen without the questions that they are scored on. spread: "
        "standard deviation over ways to divide the questions. In brackets 95% bootstrap "
        "intervals; that of the gain is paired by question.",
        strong=[found.candidates.index(found.chosen)],
    )


def transfer_tables(outcome: Outcome) -> list[Table]:
    """One a test split."""
    return [
        Table(
            ["method", "setting", "accuracy", "gain"],
            [
                [
                    TITLES[r.candidate.family],
                    describe(r.candidate.params),
                    with_interval(r.accuracy),
                    "" if r.candidate.family == "base" else with_interval(r.gain, sign="+"),
                ]
                for r in results
            ],
            title=f"{name}, which took no part",
            strong=[n for n, r in enumerate(results) if r.candidate is outcome.calibration.chosen],
        )
        for name, results in outcome.transfers.items()
    ]


def verdict(outcome: Outcome) -> str:
    """The recommendation in one or two sentences."""
    chosen = outcome.calibration.chosen
    text = f"Recommended: {describe(chosen.params)}."
    if chosen.family != "base":
        text += f" It gains {points(chosen.gain)}, cross-validated."
    return text


def cost(outcome: Outcome) -> str:
    sweep = outcome.sweep
    return (
        f"{len(sweep.table.alphas)} alphas took {sweep.all_tokens:,} tokens, "
        f"{sweep.cost:.2f} times the {sweep.plain_tokens:,} of one unsteered run."
    )


def resolution(outcome: Outcome) -> str:
    found = outcome.calibration.resolution
    return f"Gains below about {100 * found:.1f} points cannot be told from noise here."


def page(outcome: Outcome, plots: Mapping[str, Figure]) -> str:
    """Self-contained HTML."""
    sections = [
        Section(
            "Recommendation",
            text=[verdict(outcome), resolution(outcome)],
            tables=[validation_table(outcome)],
        )
    ]
    if outcome.transfers:
        sections.append(Section("On other questions", tables=transfer_tables(outcome)))
    sections.append(Section("What the sweep saw", text=[cost(outcome)], figures=[*plots.values()]))
    return render(
        f"Calibration: {outcome.benchmark}, {outcome.split}",
        sections,
        facts=outcome.facts,
        warnings=outcome.calibration.warnings,
    )


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Every answer, score and confidence included; accuracies in [0, 1]."""
    table, found = outcome.sweep.table, outcome.calibration
    return {
        "benchmark": outcome.benchmark,
        "split": outcome.split,
        "questions": len(table.ids),
        "facts": dict(outcome.facts),
        "tokens": {
            "plain": outcome.sweep.plain_tokens,
            "all": outcome.sweep.all_tokens,
            "ratio": outcome.sweep.cost,
        },
        "alphas": table.alphas.tolist(),
        "accuracy_by_alpha": table.scores.mean(axis=0).tolist(),
        "chosen": found.chosen.family,
        "candidates": [asdict(c) for c in found.candidates],
        "resolution": found.resolution,
        "warnings": list(found.warnings),
        "transfer": {
            name: [
                {
                    "family": r.candidate.family,
                    "params": asdict(r.candidate.params),
                    "accuracy": asdict(r.accuracy),
                    "gain": asdict(r.gain),
                }
                for r in results
            ]
            for name, results in outcome.transfers.items()
        },
        "measures": {kind: _measure(outcome, kind) for kind in CONFIDENCES},
        "expected_calibration_error": reliability(table).error,
        "answers": [
            {
                "id": name,
                "texts": list(table.texts[i]),
                "scores": table.scores[i].tolist(),
                "confidence": {kind: float(table.confidences[kind][i]) for kind in CONFIDENCES},
            }
            for i, name in enumerate(table.ids)
        ],
    }


def _measure(outcome: Outcome, kind: str) -> dict[str, Any]:
    """For each [alpha_low][alpha_high] the best threshold of a measure and its accuracy."""
    table = outcome.sweep.table
    at = thresholds(table.confidences[kind])
    found: dict[str, Any] = {"risk_coverage_area": risk_coverage(table, kind).area}
    if len(at):
        sums = adaptive_sums(table.scores, table.confidences[kind], at)
        found["best_threshold"] = at[sums.argmax(axis=0)].tolist()
        found["accuracy"] = np.round(sums.max(axis=0) / len(table.ids), 6).tolist()
    return found
