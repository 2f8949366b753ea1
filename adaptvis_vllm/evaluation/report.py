"""The HTML report of `adaptvis eval`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adaptvis_vllm.evaluation.datasets.scoring import by_group
from adaptvis_vllm.evaluation.html import svg
from adaptvis_vllm.evaluation.html.page import Figure, Section, Table, render
from adaptvis_vllm.evaluation.results import (
    Evaluation,
    Outcome,
    group_tables,
    summary_table,
)
from adaptvis_vllm.files.media import load_image, pixels

EXAMPLES = 12
PIXELS = 320  # the longer side of an example's picture
FEW = 100  # questions, below which the page warns


def page(evaluation: Evaluation) -> str:
    """Self-contained HTML."""
    groups = group_tables(evaluation)
    sections = [
        Section(
            "Accuracy",
            text=evaluation.notes,
            tables=[summary_table(evaluation)],
            figures=_summary(evaluation),
        )
    ]
    if groups:
        sections.append(Section("By group", tables=groups, figures=_groups(evaluation)))
    if drawn := [f for o in evaluation.outcomes.values() for f in _confidence(o)]:
        sections.append(
            Section(
                "Confidence",
                text=[
                    "AdaptVis takes alpha_low where the unsteered first token's confidence is "
                    "below the threshold, else alpha_high."
                ],
                figures=drawn,
            )
        )
    for outcome in evaluation.outcomes.values():
        if outcome.mended or outcome.broken:
            sections.append(_changes(evaluation, outcome))
    return render(
        f"{evaluation.benchmark.name}: {evaluation.split}",
        sections,
        facts=evaluation.facts,
        warnings=_warnings(evaluation),
    )


def _warnings(evaluation: Evaluation) -> list[str]:
    out = []
    if len(evaluation.questions) < FEW:
        out.append(
            f"Only {len(evaluation.questions)} questions: differences of several points are noise."
        )
    for outcome in evaluation.outcomes.values():
        if outcome.gain is not None and outcome.gain.low <= 0 <= outcome.gain.high:
            out.append(f"The gain of {outcome.title} is within noise: its interval contains 0.")
    return out


def _summary(evaluation: Evaluation) -> list[Figure]:
    outcomes = list(evaluation.outcomes.values())
    with svg.style() as plt:
        drawn, axes = plt.subplots()
        for place, outcome in enumerate(outcomes):
            _bar(axes, place, outcome.accuracy, svg.COLOURS[place % len(svg.COLOURS)])
            known = [
                p
                for p in evaluation.benchmark.published
                if (p.method, p.figure) == (outcome.method, "accuracy")
            ]
            for p, marker in zip(known, "Dsv^", strict=False):
                axes.plot(
                    place,
                    p.value,
                    marker,
                    color=svg.INK,
                    markerfacecolor="none",
                    linestyle="none",
                    label=f"{p.model}, published" if place == 0 else None,
                )
        if evaluation.benchmark.chance is not None:
            axes.axhline(
                100 * evaluation.benchmark.chance, color=svg.INK, ls=":", lw=1, label="chance"
            )
        _names(axes, outcomes)
        axes.set(ylabel="accuracy, %", ylim=(0, 105))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), ncols=3)
        out = [svg.figure(drawn, "Accuracy", "Whiskers: 95% bootstrap intervals.")]
        gained = [o for o in outcomes if o.gain is not None]
        if gained:
            drawn, axes = plt.subplots()
            for place, outcome in enumerate(gained):
                _bar(axes, place, outcome.gain, svg.COLOURS[(place + 1) % len(svg.COLOURS)])
            axes.axhline(0, color=svg.INK, lw=1)
            _names(axes, gained)
            axes.set(ylabel="gain over base, points")
            axes.margins(y=0.2)
            caption = "Paired by question: the same resamples for both methods."
            out.append(svg.figure(drawn, "Gain over the base", caption))
    return out


def _bar(axes: Any, place: int, found: Any, colour: str) -> None:
    value, low, high = (100 * v for v in (found.value, found.low, found.high))
    axes.bar(place, value, width=0.55, color=colour, alpha=0.85)
    error = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(place, value, error, color=svg.INK, capsize=5, lw=1.5)


def _names(axes: Any, outcomes: Sequence[Outcome]) -> None:
    axes.set_xticks(range(len(outcomes)), [o.title for o in outcomes])
    axes.set_xlim(-0.6, len(outcomes) - 0.4)
    axes.grid(axis="x", visible=False)


def _groups(evaluation: Evaluation) -> list[Figure]:
    out = []
    outcomes = list(evaluation.outcomes.values())
    width = 0.8 / len(outcomes)
    with svg.style() as plt:
        for field in evaluation.benchmark.groups:
            names = list(by_group(evaluation.questions, outcomes[0].right.tolist(), field))
            if len(names) < 2:
                continue
            drawn, axes = plt.subplots()
            for number, outcome in enumerate(outcomes):
                found = by_group(evaluation.questions, outcome.right.tolist(), field)
                axes.bar(
                    np.arange(len(names)) + (number - (len(outcomes) - 1) / 2) * width,
                    [100 * found[name][0] for name in names],
                    width=0.9 * width,
                    color=svg.COLOURS[number % len(svg.COLOURS)],
                    label=outcome.title,
                )
            turn = 30 if len(names) > 6 else 0
            axes.set_xticks(
                range(len(names)), names, rotation=turn, ha="right" if turn else "center"
            )
            axes.set(ylabel="accuracy, %", ylim=(0, 105))
            axes.grid(axis="x", visible=False)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=3)
            out.append(svg.figure(drawn, f"Accuracy by {field}"))
    return out


def _confidence(adaptive: Outcome) -> list[Figure]:
    steering, base = adaptive.steering, adaptive.base
    if steering is None or steering.mode != "adaptive" or base is None:
        return []
    values = np.array([a.report["confidence"] for a in adaptive.answers], dtype=float)
    known = ~np.isnan(values)
    if not known.any():
        return []
    with svg.style() as plt:
        drawn, axes = plt.subplots()
        axes.hist(
            [values[known & base.right], values[known & ~base.right]],
            bins=np.linspace(0, 1, 26),
            stacked=True,
            color=(svg.COLOURS[2], svg.COLOURS[1]),
            label=("base right", "base wrong"),
        )
        axes.axvline(steering.threshold, color=svg.INK, ls="--", lw=1.5, label="threshold")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel=f"confidence ({steering.confidence})", ylabel="questions")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=3)
        title = "Confidence of the unsteered first token"
        return [svg.figure(drawn, title, adaptive.title)]


def _changes(evaluation: Evaluation, outcome: Outcome) -> Section:
    """The first questions that an outcome mended and broke, as pictures or else as a table."""
    assert outcome.base is not None
    numbers = _examples(outcome)
    text = (
        f"It mended {outcome.mended} answers and broke {outcome.broken}, against "
        f"{outcome.base.title}. The first of each, at most {EXAMPLES} in all:"
    )
    title = f"What {outcome.title} changed"
    if all(evaluation.questions[n].images for n in numbers):
        shown = [_example(evaluation, outcome, n) for n in numbers]
        return Section(title, text=[text], figures=shown, small=True)
    rows = []
    for number in numbers:
        question = evaluation.questions[number]
        was, is_now = (o.answers[number].text.strip()[:80] for o in (outcome.base, outcome))
        verdict = "mended" if outcome.right[number] else "broken"
        rows.append([verdict, question.question[:80], question.answers[0], was, is_now])
    heads = ["", "question", "right", outcome.base.title, outcome.title]
    return Section(title, text=[text], tables=[Table(heads, rows)])


def _examples(outcome: Outcome) -> list[int]:
    base = outcome.base
    assert base is not None
    mended = np.flatnonzero(outcome.right & ~base.right).tolist()
    broken = np.flatnonzero(base.right & ~outcome.right).tolist()
    half = EXAMPLES // 2
    few = min(len(broken), max(half, EXAMPLES - len(mended)))
    return mended[: EXAMPLES - few] + broken[:few]


def _example(evaluation: Evaluation, outcome: Outcome, number: int) -> Figure:
    assert outcome.base is not None
    question = evaluation.questions[number]
    was, is_now = (o.answers[number].text.strip()[:80] for o in (outcome.base, outcome))
    verdict = "mended" if outcome.right[number] else "broken"
    caption = f"{question.answers[0]} is right. Base: {was!r}. {outcome.title}: {is_now!r}."
    picture = _thumbnail(pixels(load_image(question.images[0], Path(), "image")))
    return Figure(picture, f"{verdict}: {question.question}", caption)


def _thumbnail(image: Image.Image) -> bytes:
    image = image.copy()
    image.thumbnail((PIXELS, PIXELS))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
