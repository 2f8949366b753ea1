"""What a diagnosis found: as tables, as JSON, as CSV and as arrays."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.diagnosis.boxes import Boxes
from adaptvis_vllm.diagnosis.collect import Shares
from adaptvis_vllm.diagnosis.heads import Heads, Layers, heads, held_json, layers, telling
from adaptvis_vllm.evaluation.datasets.question import Question, Refused
from adaptvis_vllm.evaluation.results import Outcome
from adaptvis_vllm.evaluation.stats import Interval

TOP = 10  # heads in a table
CHANGES = ("mended", "broken", "right both times", "wrong both times")


@dataclass(frozen=True)
class Diagnosis:
    """questions: the Q that were answered. boxes: theirs [Q]. base, steered: their outcomes.

    measure: by whose AUROC heads are ranked. facts, notes, errors: as of `Evaluation`.
    """

    benchmark: str
    split: str
    questions: Sequence[Question]
    boxes: Sequence[Boxes | None]
    shares: Shares
    base: Outcome
    steered: Outcome | None
    measure: str
    facts: Mapping[str, Any]
    notes: Sequence[str] = ()
    errors: Sequence[Refused] = ()

    @cached_property
    def heads(self) -> Mapping[str, Heads]:
        """By measure."""
        return {m: heads(self.shares, m, self.base.right) for m in self.shares.measures}

    @cached_property
    def layers(self) -> Mapping[str, Layers]:
        """By measure."""
        return {measure: layers(found) for measure, found in self.heads.items()}

    @property
    def ranked(self) -> Heads:
        return self.heads[self.measure]

    @cached_property
    def size(self) -> Interval | None:
        """AUROC of `even`, the size of the boxes as the image positions see it, without any look;
        None without boxes."""
        rows = self.shares.boxed
        if not rows.any():
            return None
        (found,) = telling(self.shares.even[rows, None], self.base.right[rows])
        return found

    @property
    def changes(self) -> dict[str, NDArray[np.bool_]]:
        """name of `CHANGES` -> [Q], which questions; nothing without steering."""
        if self.steered is None:
            return {}
        base, now = self.base.right, self.steered.right
        return dict(zip(CHANGES, (~base & now, base & ~now, base & now, ~base & ~now), strict=True))

    def moved(self, measure: str, rows: NDArray[np.bool_]) -> tuple[Any, Any] | None:
        """(unsteered, steered) means [L, H] over those of the rows [Q] of which it is known."""
        known = np.zeros(len(rows), bool)
        known[self.shares.rows(measure)] = True
        chosen = rows & known
        if self.shares.after is None or not chosen.any():
            return None
        both = (self.shares.before, self.shares.after)
        first, second = (of[measure][chosen].mean(0, dtype=np.float64) for of in both)
        return first, second


def as_json(found: Diagnosis) -> dict[str, Any]:
    """All but the shares of single questions; shares and accuracies in [0, 1]."""
    out: dict[str, Any] = {
        "benchmark": found.benchmark,
        "split": found.split,
        "questions": len(found.questions),
        "facts": dict(found.facts),
        "notes": list(found.notes),
        "unsteered": asdict(found.base.accuracy),
        "steered": None,
        "layers": found.shares.layers.tolist(),
        "measures": {
            measure: {
                "questions": len(of.rows),
                "right": int(of.right.sum()),
                "best": held_json(of),
                "auroc": of.auroc.tolist(),
                "low": of.low.tolist(),
                "high": of.high.tolist(),
                "blind": of.blind.tolist(),
                "share": of.mean().tolist(),
                "share_right": of.mean(of.right).tolist(),
                "share_wrong": of.mean(~of.right).tolist(),
                "by_layer": {
                    name: [asdict(value) for value in values]
                    for name, values in vars(found.layers[measure]).items()
                },
            }
            for measure, of in found.heads.items()
        },
    }
    if found.size is not None:
        out["size_of_boxes"] = asdict(found.size)
    if found.steered is not None:
        out["steered"] = {
            "steering": asdict(found.steered.steering) if found.steered.steering else None,
            "accuracy": asdict(found.steered.accuracy),
            "gain": asdict(found.steered.gain) if found.steered.gain else None,
            "changes": {
                name: {"questions": int(which.sum()), **_moved(found, which)}
                for name, which in found.changes.items()
            },
        }
    out["answers"] = [_answer(found, number) for number in range(len(found.questions))]
    out["errors"] = [{"id": row.id, "error": row.error} for row in found.errors]
    return out


def as_csv(found: Diagnosis) -> str:
    """A line a head; shares in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("auroc", "low", "high", "share", "share_right", "share_wrong")
    columns = {
        f"{measure}_{name}": values
        for measure, of in found.heads.items()
        for name, values in zip(
            names,
            (of.auroc, of.low, of.high, of.mean(), of.mean(of.right), of.mean(~of.right)),
            strict=True,
        )
    }
    everyone = np.ones(len(found.questions), bool)
    for measure in found.heads:
        if (both := found.moved(measure, everyone)) is not None:
            columns[f"{measure}_share_steered"] = both[1]
    writer.writerow(["layer", "head", *columns])
    for line, layer in enumerate(found.shares.layers):
        for head in range(found.ranked.auroc.shape[1]):
            writer.writerow(
                [layer, head, *(_cell(values[line, head]) for values in columns.values())]
            )
    return out.getvalue()


def as_arrays(found: Diagnosis) -> dict[str, Any]:
    """For `shares.npz`: every question's share in every head."""
    out: dict[str, Any] = {
        "ids": np.array([question.id for question in found.questions]),
        "layers": found.shares.layers,
        "right": found.base.right,
        "even": found.shares.even,
    }
    if found.steered is not None:
        out["right_steered"] = found.steered.right
    for measure in found.shares.measures:
        out[f"{measure}_before"] = found.shares.before[measure]
        if found.shares.after is not None:
            out[f"{measure}_after"] = found.shares.after[measure]
    return out


def _moved(found: Diagnosis, which: NDArray[np.bool_]) -> dict[str, Any]:
    out = {}
    for measure in found.heads:
        both = found.moved(measure, which)
        if both is not None:
            out[measure] = {"before": both[0].tolist(), "after": both[1].tolist()}
    return out


def _answer(found: Diagnosis, place: int) -> dict[str, Any]:
    question, boxes = found.questions[place], found.boxes[place]
    out = {
        "id": question.id,
        "answer": list(question.answers),
        "objects": list(boxes.names) if boxes else [],
        "even": float(found.shares.even[place]),
        "unsteered": found.base.answers[place].text,
        "right": bool(found.base.right[place]),
    }
    if found.steered is not None:
        answer = found.steered.answers[place]
        out |= {"steered": answer.text, "steered_right": bool(found.steered.right[place])}
        out["alpha"] = answer.report["alpha"]
    return out


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
