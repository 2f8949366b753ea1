"""What a diagnosis found, as tables and sentences."""

from __future__ import annotations

import numpy as np

from adaptvis_vllm.diagnosis.auroc import REPEATS
from adaptvis_vllm.diagnosis.results import Diagnosis
from adaptvis_vllm.diagnosis.shares import BOXES, IMAGE, INSIDE, LIFT, TITLES
from adaptvis_vllm.evaluation.html.page import Table
from adaptvis_vllm.evaluation.results import setting, with_interval
from adaptvis_vllm.evaluation.stats import Interval

SIZE = "size of the boxes"
TOP = 10  # heads in a table


def measure_table(found: Diagnosis) -> Table:
    """A line a measure: its best head, and what that is worth."""
    rows = []
    for measure, of in found.heads.items():
        line, head = of.best
        seen = Interval(of.auroc[line, head], of.low[line, head], of.high[line, head])
        held = of.held
        rows.append(
            [
                measure,
                str(len(of.rows)),
                of.name(of.order[0]) if of.decided else "",
                number(seen),
                number(Interval(held.auroc, held.low, held.high)) if held else "",
                f"{of.shuffled:.3f}" if of.decided else "",
                f"{of.chance:.3f}" if of.decided else "",
            ]
        )
    if found.size is not None:
        rows.append([SIZE, str(int(found.shares.boxed.sum())), "", number(found.size), "", "", ""])
    return Table(
        ["measure", "questions", "best head", "AUROC", "cross-validated", "shuffled", "chance"],
        rows,
        note="AUROC: of right against wrong unsteered answers, 95% interval (Newcombe's method 5). "
        "The best head is picked among all, so its AUROC is too good. cross-validated: picked on "
        f"one half of the questions and judged on the other, both ways, {REPEATS} times. shuffled: "
        "what the best head stays below in 95 of 100 cases where right and wrong are dealt out by "
        "chance; chance: how often it then is as good as here."
        + f" {SIZE}: what the share in the boxes would tell if all heads looked evenly."
        * (found.size is not None),
        strong=[list(found.heads).index(found.measure)],
    )


def layer_table(found: Diagnosis) -> Table:
    """A line a layer, means of its heads."""
    columns = ["layer"]
    cells: list[list[str]] = [[str(layer)] for layer in found.shares.layers]
    shown = {measure: of for measure, of in found.layers.items() if measure != INSIDE}
    for measure, of in shown.items():
        show = _times if measure == LIFT else with_interval
        columns += [measure, f"AUROC of {measure}"]
        for row, mean, value in zip(cells, of.mean, of.auroc, strict=True):
            row += [show(mean), number(value, 2)]
    note = (
        "Means of a layer's heads with 95% intervals: bootstraps of shares, in percent, and lift; "
        "Newcombe's of AUROCs."
    )
    return Table(columns, cells, note=note)


def head_table(found: Diagnosis) -> Table:
    """The first of the ranking."""
    of, rows = found.ranked, []
    all_, right, wrong = of.mean(), of.mean(of.right), of.mean(~of.right)
    show = _factor if of.measure == LIFT else _percent
    for place in of.order[:TOP]:
        at = of.place(place)
        value = Interval(of.auroc[at], of.low[at], of.high[at])
        rows.append([of.name(place), number(value), *(show(m[at]) for m in (all_, right, wrong))])
    return Table(
        ["layer.head", "AUROC", "share", "where right", "where wrong"],
        rows,
        title=f"The first of {(~of.blind).sum()} heads by {'AUROC of ' * of.decided}{of.measure}",
        note="" if of.measure == LIFT else "Shares in percent.",
    )


def change_table(found: Diagnosis) -> Table | None:
    """What steering did to the shares; a line a kind of question."""
    if found.steered is None:
        return None
    shown = [m for m in (IMAGE, BOXES, LIFT) if m in found.heads]
    line, head = found.ranked.best
    columns = ["answers", "questions", *shown]
    columns.append(f"{found.measure}, head {found.ranked.name(found.ranked.order[0])}")
    rows = []
    for name, which in found.changes.items():
        row = [name, str(int(which.sum()))]
        for measure in shown:
            show = _factor if measure == LIFT else _percent
            both = found.moved(measure, which)
            row.append("" if both is None else " to ".join(show(m.mean()) for m in both))
        both = found.moved(found.measure, which)
        show = _factor if found.measure == LIFT else _percent
        row.append("" if both is None else " to ".join(show(m[line, head]) for m in both))
        rows.append(row)
    return Table(
        columns,
        rows,
        note="Means over all layers and heads, and of the best head, unsteered to steered. Shares "
        "in percent.",
    )


def verdict(found: Diagnosis) -> list[str]:
    """Sentences that begin the report."""
    of, count = found.ranked, len(found.questions)
    right = int(found.base.right.sum())
    out = [f"{right} of {count} unsteered answers are right."]
    if found.steered is not None:
        out[0] += (
            f" {found.steered.title} ({setting(found.steered.steering)}) mended "
            f"{found.steered.mended} and broke {found.steered.broken}."
        )
    if not of.decided:
        which = "right" if of.right.all() else "wrong"
        out.append(
            f"All {len(of.right)} of which the {TITLES[of.measure]} is known are {which}: nothing "
            "can tell right from wrong there, and heads are ranked by that share."
        )
    else:
        line, head = of.best
        text = (
            f"Of {(~of.blind).sum()} heads, {of.name(of.order[0])} (layer.head) tells right from "
            f"wrong best by the {TITLES[of.measure]}: AUROC {of.auroc[line, head]:.3f} "
            f"({of.low[line, head]:.3f} to {of.high[line, head]:.3f})"
        )
        text += (
            f", cross-validated {of.held.auroc:.3f} ({of.held.low:.3f} to {of.held.high:.3f})."
            if of.held
            else ", on questions too few to cross-validate it."
        )
        out.append(text)
    if LIFT in found.heads:
        lift = [mean.value for mean in found.layers[LIFT].mean]
        most = int(np.argmax(lift))
        share = found.layers[BOXES].mean[most].value
        out.append(
            f"Layer {found.shares.layers[most]} looks at the named objects most: {lift[most]:.2f} "
            "times as much of its attention on the picture lies in their boxes as would if it were "
            f"spread evenly. That is {_percent(share)}% of all its attention."
        )
    return out


def number(found: Interval, digits: int = 3) -> str:
    if np.isnan(found.value):
        return "-"
    value, low, high = (f"{v:.{digits}f}" for v in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def _factor(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def _times(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
