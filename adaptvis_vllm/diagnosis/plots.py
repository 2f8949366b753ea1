"""Plots of a diagnosis. Shares in percent, lift as a factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adaptvis_vllm.diagnosis.heads import Heads
from adaptvis_vllm.diagnosis.results import CHANGES, Diagnosis
from adaptvis_vllm.diagnosis.shares import BOXES, IMAGE, LIFT, TITLES
from adaptvis_vllm.evaluation.html import svg
from adaptvis_vllm.evaluation.html.page import Figure
from adaptvis_vllm.evaluation.stats import Interval

RIGHT, WRONG = svg.COLOURS[2], svg.COLOURS[1]
KINDS = {IMAGE: svg.COLOURS[0], BOXES: svg.COLOURS[3], LIFT: svg.COLOURS[4]}
SKEWED = 20  # times the median, from which on the largest share asks for a logarithmic scale
TICKS = 16  # numbers of layers or heads on an axis, at most


def layers(found: Diagnosis) -> list[Figure]:
    """Curves by layer."""
    shown = [measure for measure in KINDS if measure in found.heads]
    out = []
    with svg.style() as plt:
        for measure in shown:
            drawn, axes = plt.subplots()
            of = found.layers[measure]
            if of.right and of.wrong:
                _curve(axes, found, of.right, RIGHT, "right answers", _scale(measure))
                _curve(axes, found, of.wrong, WRONG, "wrong answers", _scale(measure))
            else:
                _curve(axes, found, of.mean, KINDS[measure], "all answers", _scale(measure))
            if measure == LIFT:
                axes.axhline(1, color=svg.INK, ls=":", lw=1, label="spread evenly")
            axes.set(ylabel=_unit(measure))
            _finish(axes, found)
            caption = "Unsteered, mean of a layer's heads; bands: 95% bootstrap intervals."
            title = TITLES[measure][0].upper() + TITLES[measure][1:] + ", by layer"
            out.append(svg.figure(drawn, title, caption))
        if found.ranked.decided:
            drawn, axes = plt.subplots()
            for measure in shown:
                _curve(axes, found, found.layers[measure].auroc, KINDS[measure], measure, 1)
            axes.axhline(0.5, color=svg.INK, ls=":", lw=1, label="of no use")
            if found.size is not None:
                label = "size of the boxes"
                axes.axhline(found.size.value, color=svg.INK, ls="--", lw=1, label=label)
            axes.set(ylabel="AUROC")
            _finish(axes, found, columns=3)
            caption = (
                "Of the mean of a layer's heads, right against wrong unsteered answers; bands: "
            )
            caption += "95% intervals (Newcombe)."
            out.append(svg.figure(drawn, "AUROC by layer", caption))
    return out


def maps(found: Diagnosis) -> list[Figure]:
    """Heat maps of all layers and heads."""
    out = []
    with svg.style() as plt:
        if found.ranked.decided:
            out.append(_auroc_map(plt, found.ranked))
        for measure in KINDS:
            if measure in found.heads:
                out.append(_share_map(plt, found.heads[measure]))
    return out


def best(found: Diagnosis) -> list[Figure]:
    """The best head's shares where answers are right, and where they are wrong."""
    of = found.ranked
    line, head = of.best
    values = _scale(of.measure) * of.values[:, line, head].astype(np.float64)
    parts = [(values[of.right], RIGHT, "right"), (values[~of.right], WRONG, "wrong")]
    with svg.style() as plt:
        drawn, axes = plt.subplots()
        most = max(float(values.max()), 1e-6)
        skew = float(np.median(values)) < most / SKEWED
        least = max(float(values[values > 0].min(initial=most / 10)), most / 1e8)
        edges = np.geomspace(least, most, 41) if skew else np.linspace(0, most, 31)
        for part, colour, label in parts:
            if len(part):
                weights = np.full(len(part), 100 / len(part))
                axes.hist(
                    np.maximum(part, edges[0]),
                    bins=edges,
                    weights=weights,
                    histtype="stepfilled",
                    color=colour,
                    alpha=0.55,
                    label=f"{label}, {len(part)} answers",
                )
                axes.axvline(np.median(part), color=colour, ls="--", lw=1.5)
        axes.set(xlabel=_unit(of.measure), ylabel="answers of a kind, %")
        axes.set(xlim=(edges[0], edges[-1]), xscale="log" if skew else "linear")
        _legend(axes)
        name = of.name(of.order[0])
        caption = "Unsteered; each kind adds up to 100%. Dashed: medians."
        return [svg.figure(drawn, f"Right and wrong answers, head {name}", caption)]


def steering(found: Diagnosis) -> list[Figure]:
    """By layer, what steering did to the shares of mended and of broken answers."""
    changes = {name: which for name, which in found.changes.items() if which.any()}
    out = []
    with svg.style() as plt:
        for measure in (m for m in KINDS if m in found.heads):
            drawn, axes = plt.subplots()
            for name, colour in zip(CHANGES, (RIGHT, WRONG, *svg.COLOURS[3:5]), strict=True):
                both = found.moved(measure, changes[name]) if name in changes else None
                if both is None:
                    continue
                moved = _scale(measure) * (both[1] - both[0]).mean(1)
                strong = name in CHANGES[:2]
                label = f"{name}, {int(changes[name].sum())}"
                axes.plot(
                    found.shares.layers,
                    moved,
                    "o-" if strong else "-",
                    ms=3.5,
                    lw=2 if strong else 1.2,
                    color=colour,
                    label=label,
                )
            axes.axhline(0, color=svg.INK, lw=1)
            unit = "factor" if measure == LIFT else "points"
            axes.set(ylabel=f"steered less unsteered, {unit}")
            _finish(axes, found, columns=2)
            title = f"What steering did to the {TITLES[measure]}"
            out.append(
                svg.figure(drawn, title, "Mean of a layer's heads, by what became of answers.")
            )
    return out


def _auroc_map(plt: Any, of: Heads) -> Figure:
    reach = max(0.05, float(np.abs(of.auroc - 0.5).max()))
    title = f"AUROC of {of.measure}, every head"
    caption = (
        "Blue: more attention goes with right answers; red: with wrong ones. Framed: the best. Of "
        f"{(~of.blind).sum()} heads of no use the best reaches {of.shuffled:.3f} in 5 of 100 cases."
    )
    limits = {"cmap": "RdBu", "vmin": 0.5 - reach, "vmax": 0.5 + reach}
    return _map(plt, of, of.auroc, "AUROC", title, caption, limits, frame=True)


def _share_map(plt: Any, of: Heads) -> Figure:
    values = _scale(of.measure) * of.mean()
    title = TITLES[of.measure][0].upper() + TITLES[of.measure][1:] + ", every head"
    limits: dict[str, Any] = {"cmap": "viridis", "vmin": 0}
    caption = "Unsteered, mean over questions."
    if of.measure == LIFT:
        from matplotlib.colors import TwoSlopeNorm

        norm = TwoSlopeNorm(1, vmin=0, vmax=max(2.0, float(values.max())))
        limits = {"cmap": "RdBu", "norm": norm}
        caption += " Blue: more in the boxes than an even look has; red: less."
    return _map(plt, of, values, _unit(of.measure), title, caption, limits)


def _map(
    plt: Any,
    of: Heads,
    values: Any,
    unit: str,
    title: str,
    caption: str,
    limits: dict[str, Any],
    *,
    frame: bool = False,
) -> Figure:
    count, width = values.shape
    drawn, axes = plt.subplots(figsize=(svg.WIDTH, svg.WIDTH * 0.8))
    image = axes.imshow(values, origin="lower", aspect="auto", interpolation="nearest", **limits)
    lines = range(0, count, -(-count // TICKS))
    axes.set_yticks(list(lines), [str(of.layers[line]) for line in lines])
    axes.set_xticks(list(range(0, width, -(-width // TICKS))))
    if frame:
        line, head = of.best
        axes.add_patch(
            plt.Rectangle((head - 0.5, line - 0.5), 1, 1, fill=False, ec="#000000", lw=2)
        )
    axes.grid(visible=False)
    axes.set(xlabel="head", ylabel="layer")
    drawn.colorbar(image, ax=axes, label=unit, shrink=0.85)
    return svg.figure(drawn, title, caption)


def _curve(
    axes: Any, found: Diagnosis, values: Sequence[Interval], colour: str, label: str, scale: float
) -> None:
    low, middle, high = (
        scale * np.array([getattr(v, name) for v in values]) for name in ("low", "value", "high")
    )
    at = found.shares.layers
    axes.fill_between(at, low, high, color=colour, alpha=0.2, lw=0)
    axes.plot(at, middle, "o-", ms=3.5, color=colour, label=label)


def _finish(axes: Any, found: Diagnosis, columns: int = 4) -> None:
    at = found.shares.layers
    axes.set_xticks(at[:: -(-len(at) // TICKS)])
    axes.set(xlabel="layer")
    _legend(axes, columns)


def _legend(axes: Any, columns: int = 4) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize=8.5)


def _scale(measure: str) -> float:
    return 1.0 if measure == LIFT else 100.0


def _unit(measure: str) -> str:
    return "times an even look" if measure == LIFT else "attention, %"
