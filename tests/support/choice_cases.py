"""What a request may choose to steer, as cases of every family; some for Model Runner V2 too.

Run as a program, it answers those on V2, in Triton's interpreter, as `family_cases.py` does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints.families import FAMILIES, Family
from checkpoints.images import make_image

from adaptvis_vllm import AdaptVis, Candidates, ScalingVis, SteeringParams
from adaptvis_vllm.steering.fields import CONFIDENCES
from support.family_cases import Case, answer, make_video

HEADS = ("0.0", "1.1,2.3", "0-3.0", "0-3.0-2", "3.*", "0.1-3,2.*")
MAPS: dict[str, Any] = {"maps": "all", "maps_tokens": 2}
RULES = (("add_log", 0.05, 20.0), ("pai", -0.8, 0.8))  # a low and a high alpha


def steerings(parameter: str) -> Iterator[SteeringParams]:
    """At least 12 that have this parameter."""
    if parameter == "heads":
        for heads in HEADS:
            yield ScalingVis(3, heads=heads)
            yield AdaptVis(0.3, 3, 0.4, heads=heads)
        yield Candidates((3, 0.3), heads="1.1,2.0")
        yield ScalingVis(3, heads="0.1,2.*", **MAPS)
        yield AdaptVis(0.3, 3, 0.4, heads="0-2.0-1", **MAPS)
    elif parameter == "rule":
        for rule, low, high in RULES:
            yield from (ScalingVis(alpha, rule=rule) for alpha in (low, high))
            for confidence in ("max_prob", "margin", "entropy"):
                yield AdaptVis(low, high, 0.3, rule=rule, confidence=confidence)
            yield ScalingVis(high, rule=rule, heads="0.1-2,2.*")
            yield ScalingVis(high, rule=rule, layers="1-2", span="interval")
            yield Candidates((high, low), rule=rule)
            yield AdaptVis(low, high, 0.3, rule=rule, layers="1-3", **MAPS)
    elif parameter == "images":
        for images in ("0", "1", "0-1"):
            yield from (ScalingVis(alpha, images=images) for alpha in (0.3, 3))
            yield AdaptVis(0.3, 3, 0.4, images=images)
            yield ScalingVis(3, images=images, span="interval")
        yield Candidates((3, 0.3), images="1")
        yield ScalingVis(3, images="1", **MAPS)
    elif parameter == "videos":
        yield ScalingVis(3, videos="0")
        yield ScalingVis(3, videos="0", images="0")
        yield ScalingVis(3, images="0")
        yield AdaptVis(0.3, 3, 0.4, videos="0")
        yield ScalingVis(3, images="0", span="image")

    elif parameter == "options":
        for options in (("Left", "Right"), ("mug", "cat", "dog", "Square")):
            for confidence in CONFIDENCES:
                for threshold in (0.4, 0.9):
                    yield AdaptVis(*(0.3, 3, threshold), confidence=confidence, options=options)
            yield Candidates((3, 0.3), options=options)
        yield Candidates((3, 0.3), options=("Left", "Right"), confidence="margin")
    elif parameter == "boxes":
        for boxes in ((0, 0, 30, 30), (20, 10, 50, 56), (0, 0, 20, 20, 30, 30, 56, 56)):
            yield from (ScalingVis(alpha, boxes=boxes) for alpha in (0.3, 3))
            yield AdaptVis(0.3, 3, 0.4, boxes=boxes)
            yield ScalingVis(3, boxes=boxes, heads="0-1.*,2.1", rule="pai", rows="generated")
        yield Candidates((3, 0.3), boxes=(0, 0, 30, 56))
        yield ScalingVis(3, boxes=(0, 0, 30, 40), **MAPS)
    elif parameter == "rows":
        rows = "generated"
        for alpha in (0.3, 2.5):
            yield ScalingVis(alpha, rows=rows)
            yield ScalingVis(alpha, rows=rows, span="interval")
            yield ScalingVis(alpha, rows=rows, heads="0-1.*,2.1-3")
            yield AdaptVis(0.3, alpha, 0.4, rows=rows)
            yield AdaptVis(alpha, 2.5, 0.4, rows=rows, layers="1-3", confidence="margin")
        for alpha in (-0.5, 0.5):
            yield ScalingVis(alpha, rule="pai", rows=rows)
        yield AdaptVis(-0.5, 0.5, 0.4, rule="pai", rows=rows, images="0")
        yield AdaptVis(0.3, 2.5, 0.4, rows=rows, heads="0-2.1-2", **MAPS)
        yield ScalingVis(2.5, rows=rows, **MAPS)


PARAMETERS = ("heads", "rule", "images", "videos", "options", "rows", "boxes")


def make_choices(family: Family, parameter: str) -> list[Case]:
    small, tall = make_image(0), make_image(11)
    parts: tuple[Any, ...] = ("USER: ", small, "\nWhere is the red cat? ASSISTANT:")
    if parameter == "images":
        parts = ("USER: ", tall, "\nand then ", small, "\nWhich is brighter? ASSISTANT:")
    if parameter == "videos":
        if not family.video:
            return []
        parts = ("USER: ", small, "\nand ", make_video(3), "\nWhich is brighter? ASSISTANT:")
    tokens = 10 if parameter == "rows" else 4
    return [Case(parts, steering, max_tokens=tokens) for steering in steerings(parameter)]


def for_v2(family: Family) -> list[Case]:
    """Two of each parameter: one given alpha, one chosen."""
    found = []
    for parameter in PARAMETERS:
        cases = make_choices(family, parameter)
        modes = ("adaptive", "candidates") if parameter == "options" else ("scaling", "adaptive")
        for mode in modes:
            found += [c for c in cases if c.steering and c.steering.mode == mode][1:2]
    return [replace(case, max_tokens=min(case.max_tokens, 5)) for case in found]


def main(out: Path, models: dict[str, str]) -> None:
    """models: family -> checkpoint. Writes {family: answers of `for_v2`} to out."""
    results = {}
    for name, path in models.items():
        family = FAMILIES[name]
        results[name] = answer(Path(path), family, for_v2(family))
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    from adaptvis_vllm import _torchvision
    from adaptvis_vllm.engine.runner import interpreted

    _torchvision.ensure()
    interpreted.enable()
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
