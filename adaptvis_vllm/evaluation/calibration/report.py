"""What a calibration found: as tables, as a page, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from adaptvis_vllm.evaluation import breakdown
from adaptvis_vllm.evaluation.breakdown import Part
from adaptvis_vllm.evaluation.calibration.ceiling import Ceiling, ceiling, oracle, sentence
from adaptvis_vllm.evaluation.calibration.curves import reliability, risk_coverage
from adaptvis_vllm.evaluation.calibration.grid import adaptive_sums, thresholds
from adaptvis_vllm.evaluation.calibration.selection import (
    Calibration,
    Candidate,
    describe,
    points,
)
from adaptvis_vllm.evaluation.calibration.sweep import Sweep
from adaptvis_vllm.evaluation.calibration.transfer import Result
from adaptvis_vllm.evaluation.datasets.question import Question, Refused
from adaptvis_vllm.evaluation.html.page import Figure, Section, Table, render
from adaptvis_vllm.evaluation.methods import TITLES
from adaptvis_vllm.evaluation.results import percent, with_interval
from adaptvis_vllm.evaluation.table import SweepTable


@dataclass(frozen=True)
class Outcome:
    """All of it. benchmark, split, questions: what was calibrated on. transfers: by test split.

    facts: model, versions and the like. tests: tables of those test splits whose answers are
    known under every alpha. notes: sentences about what was left out. errors: rows that were.
    """

    benchmark: str
    split: str
    questions: Sequence[Question]
    sweep: Sweep
    calibration: Calibration
    transfers: Mapping[str, Sequence[Result]]
    facts: Mapping[str, Any]
    tests: Mapping[str, SweepTable] = field(default_factory=dict)
    notes: Sequence[str] = ()
    errors: Sequence[Refused] = ()

    @property
    def ceiling(self) -> Ceiling:
        """On the questions of the sweep, against the chosen setting, cross-validated."""
        return ceiling(self.sweep.table, self.calibration.chosen.held)

    def test_ceiling(self, name: str) -> Ceiling:
        """On one of `tests`, against the chosen setting."""
        table = self.tests[name]
        return ceiling(table, table.scores_of(self.calibration.chosen.params))

    def parts(self) -> dict[str, list[Part]]:
        """By right answer and by confidence: each alpha, the chosen setting, the oracle."""
        table, chosen = self.sweep.table, self.calibration.chosen
        columns = {f"alpha {a:g}": table.scores[:, i] for i, a in enumerate(table.alphas)}
        if chosen.family != "base":
            columns[f"{TITLES[chosen.family]}, cross-validated"] = chosen.held
        columns["oracle"] = oracle(table)
        out = {"answer": breakdown.by_answer(self.questions, columns)}
        if table.measures:
            kind = chosen.params.confidence if chosen.family == "adaptive" else table.measures[0]
            out[kind] = breakdown.by_confidence(table.confidences[kind], columns)
        return {what: parts for what, parts in out.items() if parts}


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
    best = outcome.ceiling
    rows.append(["oracle", "the right alpha", percent(best.accuracy.value), "", "", ""])
    return Table(
        ["method", "best setting", "seen", "cross-validated", "spread", "gain"],
        rows,
        title=f"{outcome.split}: {len(outcome.sweep.table.ids)} questions",
        note="Percent. seen: on the questions that the setting was chosen on, so too good. "
        "cross-validated: settings chosen without the questions that they are scored on. spread: "
        "standard deviation over ways to divide the questions. In brackets 95% bootstrap "
        "intervals; that of the gain is paired by question. oracle: always picks the right alpha.",
        strong=[found.candidates.index(found.chosen)],
    )


def transfer_tables(outcome: Outcome) -> list[Table]:
    """One a test split."""
    out = []
    for name, results in outcome.transfers.items():
        rows = [
            [
                TITLES[r.candidate.family],
                describe(r.candidate.params),
                with_interval(r.accuracy),
                "" if r.candidate.family == "base" else with_interval(r.gain, sign="+"),
            ]
            for r in results
        ]
        if name in outcome.tests:
            best = outcome.test_ceiling(name)
            accuracy, gain = with_interval(best.accuracy), with_interval(best.gain, sign="+")
            rows.append(["oracle", "the right alpha", accuracy, gain])
        strong = [n for n, r in enumerate(results) if r.candidate is outcome.calibration.chosen]
        out.append(
            Table(
                ["method", "setting", "accuracy", "gain"],
                rows,
                title=f"{name}, which took no part: {results[0].questions} questions",
                strong=strong,
            )
        )
    return out


def verdict(outcome: Outcome) -> str:
    """The recommendation in one or two sentences."""
    chosen = outcome.calibration.chosen
    text = f"Recommended: {describe(chosen.params)}."
    if chosen.family != "base":
        text += f" It gains {points(chosen.gain)}, cross-validated."
    return text


def ceilings(outcome: Outcome) -> list[str]:
    """A sentence each: the calibrated questions, then the test splits."""
    shown = outcome.sweep.table.shown
    out = [sentence(outcome.ceiling, shown, "the recommended setting, cross-validated,")]
    for name in outcome.tests:
        text = sentence(outcome.test_ceiling(name), shown, "the recommended setting")
        out.append(f"{name}: {text}")
    return out


def cost(outcome: Outcome) -> str:
    """Empty where the answers come from a file."""
    sweep = outcome.sweep
    if not sweep.plain_tokens:
        return ""
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
            text=[verdict(outcome), resolution(outcome), ceilings(outcome)[0], *outcome.notes],
            tables=[validation_table(outcome)],
        )
    ]
    if outcome.transfers:
        text, tables = ceilings(outcome)[1:], transfer_tables(outcome)
        sections.append(Section("On other questions", text=text, tables=tables))
    if parts := outcome.parts():
        tables = [breakdown.table(found, what) for what, found in parts.items()]
        sections.append(Section("Where it helps", tables=tables))
    text = [cost(outcome)] if cost(outcome) else []
    sections.append(Section("What the sweep saw", text=text, figures=[*plots.values()]))
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
        "notes": list(outcome.notes),
        "tokens": {
            "plain": outcome.sweep.plain_tokens,
            "all": outcome.sweep.all_tokens,
            "ratio": outcome.sweep.cost,
        }
        if outcome.sweep.plain_tokens
        else None,
        "alphas": table.alphas.tolist(),
        "accuracy_by_alpha": table.scores.mean(axis=0).tolist(),
        "chosen": found.chosen.family,
        "candidates": [_candidate(c) for c in found.candidates],
        "oracle": asdict(outcome.ceiling),
        "test_oracle": {name: asdict(outcome.test_ceiling(name)) for name in outcome.tests},
        "parts": {
            what: [part.as_json() for part in parts] for what, parts in outcome.parts().items()
        },
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
        "measures": {kind: _measure(outcome, kind) for kind in table.measures},
        "expected_calibration_error": reliability(table).error
        if "max_prob" in table.measures
        else None,
        "answers": [
            {
                "id": name,
                "texts": list(table.texts[i]),
                "scores": table.scores[i].tolist(),
                "confidence": {kind: float(table.confidences[kind][i]) for kind in table.measures},
            }
            for i, name in enumerate(table.ids)
        ],
        "errors": [{"id": row.id, "error": row.error} for row in outcome.errors],
    }


def _candidate(found: Candidate) -> dict[str, Any]:
    """Without the scores of single questions."""
    values = {f.name: getattr(found, f.name) for f in fields(found) if f.name != "held"}
    return {n: v if isinstance(v, str | float | int) else asdict(v) for n, v in values.items()}


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
