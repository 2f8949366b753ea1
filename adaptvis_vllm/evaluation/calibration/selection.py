"""The setting to use: the simplest that is not worse than another beyond noise.

Settings come in three families, from simple to rich: "base" (alpha = 1), "scaling" (one alpha)
and "adaptive". The best of a family on some questions looks better there than it is, so the
families are compared on questions that took no part in choosing: every question is scored by
the settings that were chosen without its fold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.calibration.grid import Best, best
from adaptvis_vllm.evaluation.methods import METHODS
from adaptvis_vllm.evaluation.stats import Interval, interval, paired
from adaptvis_vllm.evaluation.table import SweepTable
from adaptvis_vllm.steering.heads import parse_heads
from adaptvis_vllm.steering.params import SteeringParams

FAMILIES = METHODS
FOLDS = 5
REPEATS = 20
FEW = 100  # questions; fewer make a warning
FEW_WRONG = 20  # wrong answers of the base; fewer leave too little to gain from


@dataclass(frozen=True)
class Candidate:
    """The best setting of one family, chosen on all questions.

    seen: its accuracy on the very questions that it was chosen on; too good to be true.
    accuracy: cross-validated, of the family's choice. spread: standard deviation of that
    figure over the repeats, which divide the questions into other folds.
    gain: cross-validated accuracy over the base's, paired.
    held: [Q] cross-validated scores, means over the repeats. variant: number of its table.
    """

    family: str
    params: SteeringParams
    seen: Interval
    accuracy: Interval
    spread: float
    gain: Interval
    held: NDArray[np.float64] = field(compare=False, repr=False)
    variant: int = 0


@dataclass(frozen=True)
class Calibration:
    """candidates: one a family, in their order. chosen: the recommended one.

    warnings: sentences that a reader must know. resolution: the smallest gain that this many
    questions tell from noise, about.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    resolution: float
    warnings: tuple[str, ...]

    @property
    def variant(self) -> int:
        """Number of the table to show: the chosen setting's, or the best one's where alpha = 1 is
        kept."""
        if self.chosen.family != "base":
            return self.chosen.variant
        return max(self.candidates[1:], key=lambda c: c.gain.value).variant

    def candidate(self, family: str) -> Candidate:
        return self.candidates[FAMILIES.index(family)]


def calibrate(
    *tables: SweepTable, folds: int = FOLDS, repeats: int = REPEATS, seed: int = 0
) -> Calibration:
    """Choose a setting. Equal seeds give equal results.

    tables: of the same questions, with other heads or rules each; which of them is used is chosen
    with the setting, in every fold anew. Of equals the first.
    """
    if len({tuple(table.ids) for table in tables}) != 1:
        raise ValueError("settings were not swept on the same questions")
    wholes = [best(table.scores, table.confidences, table.alphas) for table in tables]
    held = cross_validate(*tables, folds=folds, repeats=repeats, seed=seed)
    base = held[0].mean(axis=0)
    candidates = []
    for number, family in enumerate(FAMILIES):
        settings = [whole.steering(family, t) for whole, t in zip(wholes, tables, strict=True)]
        totals = [t.scores_of(s).sum() for t, s in zip(tables, settings, strict=True)]
        variant = int(np.argmax(totals)) if family != "base" else 0
        params, table = settings[variant], tables[variant]
        scores = held[number].mean(axis=0)
        candidates.append(
            Candidate(
                family,
                params,
                seen=interval(table.scores_of(params)),
                accuracy=interval(scores),
                spread=float(held[number].mean(axis=1).std()),
                gain=paired(base, scores),
                variant=variant,
                held=scores,
            )
        )
    chosen = 0
    for number in range(1, len(FAMILIES)):
        simpler, richer = held[chosen].mean(axis=0), held[number].mean(axis=0)
        if candidates[number].params.mode != "off" and paired(simpler, richer).low > 0:
            chosen = number
    widest = max((c.gain.high - c.gain.low) / 2 for c in candidates)
    number = candidates[chosen].variant
    warnings = _warnings(tables[number], candidates, candidates[chosen], wholes[number])
    return Calibration(tuple(candidates), candidates[chosen], widest, tuple(warnings))


def cross_validate(*tables: SweepTable, folds: int, repeats: int, seed: int) -> NDArray[np.float64]:
    """[families, repeats, Q] scores of each question under settings, and a table, chosen without
    its fold."""
    table = tables[0]
    count = len(table.ids)
    folds = min(folds, count)
    out = np.empty((len(FAMILIES), repeats, count))
    out[0] = table.scores[:, table.plain]
    if folds < 2:
        out[1:] = out[0]
        return out
    rng = np.random.default_rng(seed)
    for repeat in range(repeats):
        fold_of = rng.permutation(count) % folds
        for fold in range(folds):
            train, test = fold_of != fold, np.nonzero(fold_of == fold)[0]
            found = [_scores(one, train) for one in tables]
            for family in (1, 2):
                scores = max((each[family - 1] for each in found), key=lambda s: s[train].sum())
                out[family, repeat, test] = scores[test]
    return out


def _scores(
    table: SweepTable, train: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[Q] scores of the scaling and of the adaptive setting that are the best of some questions."""
    known = {kind: values[train] for kind, values in table.confidences.items()}
    found = best(table.scores[train], known, table.alphas)
    params = found.steering("adaptive", table)
    return table.scores[:, found.scaling], table.scores_of(params)


def _warnings(
    table: SweepTable, candidates: list[Candidate], chosen: Candidate, whole: Best
) -> list[str]:
    count = len(table.ids)
    wrong = round(float((1 - table.scores[:, table.plain]).sum()))
    out = []
    if count < FEW:
        out.append(
            f"{count} questions are few: settings chosen on fewer than {FEW} seldom hold elsewhere."
        )
    if wrong < FEW_WRONG:
        out.append(f"The unsteered model answers only {wrong} of {count} questions wrongly.")
    if chosen.family == "base":
        richest = max(candidates[1:], key=lambda c: c.gain.value)
        if richest.gain.value <= 0:
            out.append("No setting gains anything, cross-validated: alpha = 1 is kept.")
        else:
            out.append(
                f"The gain is within noise: alpha = 1 is kept. {describe(richest.params)} gains "
                f"{points(richest.gain)}, cross-validated."
            )
    used = {
        "base": (),
        "scaling": (whole.scaling,),
        "adaptive": (whole.low, whole.high),
    }[chosen.family]
    for index in used:
        if index in (0, len(table.alphas) - 1):
            out.append(
                f"alpha {table.alphas[index]:g} is at the end of the grid; a wider one may hold a "
                "better setting."
            )
    return list(dict.fromkeys(out))


def describe(params: SteeringParams) -> str:
    """A setting in few words."""
    if params.mode == "off":
        return "alpha = 1"
    told = "" if params.rule == "multiply" else f", rule {params.rule}"
    if params.heads is not None:
        told += f", {sum(mask.bit_count() for mask in parse_heads(params.heads).values())} heads"
    if params.mode == "scaling":
        return f"alpha = {params.alpha:g}{told}"
    return (
        f"alpha = {params.alpha_low:g} where {params.confidence} < {params.threshold:g}, "
        f"else {params.alpha_high:g}{told}"
    )


def points(gain: Interval) -> str:
    """A difference of accuracies in percentage points, with its interval."""
    return f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
