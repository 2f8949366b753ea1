"""Plots of a calibration. Accuracies in percent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from adaptvis_vllm.evaluation import stats
from adaptvis_vllm.evaluation.calibration.curves import (
    over_threshold,
    reliability,
    risk_coverage,
)
from adaptvis_vllm.evaluation.calibration.grid import Best, adaptive_sums
from adaptvis_vllm.evaluation.html import svg
from adaptvis_vllm.evaluation.html.page import Figure
from adaptvis_vllm.evaluation.table import SweepTable

FIRST = 10  # questions, below which a risk says nothing
ALL, UNSURE, SURE = svg.COLOURS[0], svg.COLOURS[1], svg.COLOURS[2]


def draw(table: SweepTable, best: Best) -> dict[str, Figure]:
    """name -> figure. best: the settings to mark."""
    with svg.style() as plt:
        return dict(_all(plt, table, best))


def _all(plt: Any, table: SweepTable, best: Best) -> Iterator[tuple[str, Figure]]:
    yield "alpha", _over_alpha(plt, table, best)
    if best.measure:
        yield "heatmap", _heat_map(plt, table, best)
    if table.measures:
        yield "confidence", _histograms(plt, table, best)
    if best.measure:
        yield "threshold", _over_threshold(plt, table, best)
    if table.measures:
        yield "risk_coverage", _risk_coverage(plt, table)
    if "max_prob" in table.measures:
        yield "reliability", _reliability(plt, table)


def _over_alpha(plt: Any, table: SweepTable, best: Best) -> Figure:
    drawn, axes = plt.subplots()
    parts = []
    if table.measures:
        order = np.argsort(table.confidences[table.measures[0]], kind="stable")
        half = len(order) // 2
        parts = [
            ("least certain half", order[:half], UNSURE),
            ("most certain half", order[half:], SURE),
        ]
    for name, part, colour in parts:
        if len(part):
            axes.plot(
                table.alphas,
                100 * table.scores[part].mean(0),
                "--",
                lw=1.3,
                color=colour,
                label=name,
            )
    found = [stats.interval(column) for column in table.scores.T]
    low, middle, high = (
        100 * np.array([getattr(f, name) for f in found]) for name in ("low", "value", "high")
    )
    axes.fill_between(table.alphas, low, high, color=ALL, alpha=0.2, lw=0)
    axes.plot(table.alphas, middle, "o-", ms=4, color=ALL, label="all questions")
    axes.plot(
        table.alphas[best.scaling], middle[best.scaling], "o", ms=11, mfc="none", mew=2, color=ALL
    )
    axes.axvline(1, color=svg.INK, ls=":", lw=1)
    axes.set(xscale="log", xlabel="alpha", ylabel="accuracy, %")
    _alpha_ticks(axes.xaxis, table)
    _legend(axes)
    return svg.figure(
        drawn,
        "Accuracy over alpha",
        "One alpha for all questions; band: 95% bootstrap interval; circle: the best; dotted: no "
        "steering."
        + (
            f" Dashed: halves of the questions by {table.measures[0]}. AdaptVis can gain where the "
            "halves rise in different directions."
            if parts
            else ""
        ),
    )


def _alpha_ticks(axis: Any, table: SweepTable) -> None:
    axis.set_major_locator(_fixed(table.alphas))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(_fixed([]))


def _fixed(places: Any) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(list(places))


def _heat_map(plt: Any, table: SweepTable, best: Best) -> Figure:
    sums = adaptive_sums(table.scores, table.confidences[best.measure], np.array([best.threshold]))[
        0
    ]
    cells = 100 * sums / len(table.ids)
    gain = cells - cells[table.plain, table.plain]
    reach = max(1.0, float(np.abs(gain).max()))
    count = len(table.alphas)
    drawn, axes = plt.subplots(figsize=(svg.WIDTH, svg.WIDTH * 0.85))
    image = axes.imshow(gain, cmap="RdBu", vmin=-reach, vmax=reach, origin="lower")
    for low in range(count):
        for high in range(count):
            dark = abs(gain[low, high]) > 0.6 * reach
            axes.text(
                high,
                low,
                f"{cells[low, high]:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="#ffffff" if dark else "#202020",
            )
    for low, high, line in ((best.low, best.high, "-"), (table.plain, table.plain, ":")):
        frame = plt.Rectangle(
            (high - 0.5, low - 0.5), 1, 1, fill=False, ec="#000000", lw=2, ls=line
        )
        axes.add_patch(frame)
    names = [f"{alpha:g}" for alpha in table.alphas]
    axes.set_xticks(range(count), names)
    axes.set_yticks(range(count), names)
    axes.grid(visible=False)
    axes.set(
        xlabel=f"alpha where {best.measure} >= {best.threshold:g}",
        ylabel=f"alpha where {best.measure} < {best.threshold:g}",
    )
    drawn.colorbar(image, ax=axes, label="gain over alpha = 1, points", shrink=0.85)
    return svg.figure(
        drawn,
        "Both alphas",
        "Numbers: accuracy at the best adaptive setting's threshold. Framed: that setting; dotted "
        "frame: no steering. On the diagonal both alphas are the same.",
    )


def _histograms(plt: Any, table: SweepTable, best: Best) -> Figure:
    right = table.scores[:, table.plain] >= 0.5
    drawn, all_axes = plt.subplots(
        len(table.measures),
        sharex=True,
        squeeze=False,
        figsize=(svg.WIDTH, svg.HEIGHT * 1.25),
    )
    all_axes = all_axes[:, 0]
    for axes, kind in zip(all_axes, table.measures, strict=True):
        values = table.confidences[kind]
        for part, colour, label in ((right, SURE, "right"), (~right, UNSURE, "wrong")):
            axes.hist(
                values[part],
                bins=np.linspace(0, 1, 41),
                log=True,
                histtype="stepfilled",
                color=colour,
                alpha=0.55,
                label=label,
            )
        if kind == best.measure:
            axes.axvline(best.threshold, color=svg.INK, ls="--", lw=1.5, label="threshold")
        axes.set(ylabel="questions", xlim=(0, 1), ylim=(0.5, None))
        axes.set_title(kind, fontsize=10, loc="left")
    all_axes[-1].set_xlabel("confidence")
    drawn.legend(*_all_handles(all_axes), loc="outside upper right", ncols=3, bbox_to_anchor=(1, 1))
    return svg.figure(
        drawn,
        "Confidence of right and wrong answers",
        "Unsteered answers, on a logarithmic scale. A measure is useful where wrong answers lie "
        "further left.",
    )


def _all_handles(all_axes: Any) -> tuple[list[Any], list[str]]:
    found = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found[label] = handle
    return list(found.values()), list(found)


def _over_threshold(plt: Any, table: SweepTable, best: Best) -> Figure:
    drawn, axes = plt.subplots()
    plain = 100 * table.scores[:, table.plain].mean()
    for kind, colour in zip(table.measures, svg.COLOURS, strict=False):
        at, accuracy, _ = over_threshold(table, kind, best.low, best.high)
        strong = kind == best.measure
        axes.step(
            at, 100 * accuracy, color=colour, label=kind, lw=2.2 if strong else 1.2, where="mid"
        )
    axes.axhline(plain, color=svg.INK, ls=":", lw=1, label="no steering")
    axes.axvline(best.threshold, color=svg.INK, ls="--", lw=1.2)
    axes.set(xlabel="threshold", ylabel="accuracy, %", xlim=(0, 1))
    _legend(axes)
    low, high = table.alphas[best.low], table.alphas[best.high]
    return svg.figure(
        drawn,
        "Accuracy over threshold",
        f"alpha {low:g} below the threshold, {high:g} from it on. Dashed: the best threshold, of "
        f"{best.measure}. Broad heights can be trusted, narrow peaks are noise.",
    )


def _risk_coverage(plt: Any, table: SweepTable) -> Figure:
    drawn, axes = plt.subplots()
    for kind, colour in zip(table.measures, svg.COLOURS, strict=False):
        curve = risk_coverage(table, kind)
        shown = slice(min(FIRST, len(table.ids)) - 1, None)
        axes.plot(
            100 * curve.coverage[shown],
            100 * curve.risk[shown],
            color=colour,
            lw=1.6,
            label=f"{kind}, area {curve.area:.3f}",
        )
    risk = 100 * (1 - table.scores[:, table.plain].mean())
    axes.axhline(risk, color=svg.INK, ls=":", lw=1, label="of no use")
    axes.set(
        xlabel="answered, most confident first, %", ylabel="wrong among these, %", xlim=(0, 100)
    )
    axes.set_ylim(bottom=0)
    _legend(axes, columns=2)
    return svg.figure(
        drawn,
        "Risk and coverage",
        "Unsteered. A useful measure stays low and rises late; area: mean risk.",
    )


def _reliability(plt: Any, table: SweepTable) -> Figure:
    drawn, axes = plt.subplots()
    found = reliability(table)
    deviation = np.sqrt(found.accuracy * (1 - found.accuracy) / found.count)
    axes.plot([0, 1], [0, 100], color=svg.INK, ls=":", lw=1)
    axes.errorbar(
        found.confidence,
        100 * found.accuracy,
        196 * deviation,
        fmt="o-",
        ms=5,
        capsize=3,
        color=ALL,
    )
    axes.set(xlabel="max_prob", ylabel="accuracy, %", xlim=(0, 1.02), ylim=(0, 104))
    return svg.figure(
        drawn,
        "Calibration",
        f"Unsteered, in {len(found.count)} equal groups by max_prob, with normal 95% intervals. On "
        "the dotted line the confidence says how often the answer is right; expected calibration "
        f"error {100 * found.error:.1f} points.",
    )


def _legend(axes: Any, columns: int = 4) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize=8.5)
