"""Made-up attention maps and diagnoses."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptvis_vllm.maps.maps import Maps


def grid(width: int, height: int, columns: int, rows: int) -> np.ndarray[Any, Any]:
    """[rows * columns, 4] rectangles that tile a picture, row by row."""
    xs, ys = np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1)
    return np.array(
        [[xs[c], ys[r], xs[c + 1], ys[r + 1]] for r in range(rows) for c in range(columns)]
    )


def make_maps(
    before: Any, boxes: Any, *, after: Any = None, image: Any = None, unknown: str = ""
) -> Maps:
    """before, after: [L, H, P]. boxes: [P, 4]. image: [P], else one picture."""
    before = np.asarray(before, np.float16)
    boxes = np.asarray(boxes, np.float32)
    layers, heads, positions = before.shape
    image = np.zeros(positions, np.int32) if image is None else np.asarray(image, np.int32)
    rest = np.zeros((layers, heads, 2), np.float16)
    return Maps(
        layers=np.arange(layers, dtype=np.int32),
        positions=np.arange(positions, dtype=np.int32),
        image=image,
        frame=np.full(positions, -1, np.int32),
        boxes=boxes,
        sizes=np.zeros((int(image.max()) + 1, 2), np.int32),
        before=before,
        rest_before=rest,
        after=None if after is None else np.asarray(after, np.float16),
        rest_after=None if after is None else rest,
        unknown=unknown,
    )


def made_up(
    count: int = 160, *, boxed: bool = True, steered: bool = True, unknown: str = ""
) -> Any:
    """A `Diagnosis` of 12 layers of 8 heads, of which head 5.3 looks at the box where the answer is
    right. Every tenth question has no boxes; steering mends every fourth wrong answer."""
    from adaptvis_vllm.diagnosis.boxes import Boxes
    from adaptvis_vllm.diagnosis.collect import Collector
    from adaptvis_vllm.diagnosis.results import Diagnosis
    from adaptvis_vllm.evaluation.answers import Answer
    from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question
    from adaptvis_vllm.evaluation.datasets.scoring import contains
    from adaptvis_vllm.evaluation.results import judge
    from adaptvis_vllm.steering.params import Off, ScalingVis
    from adaptvis_vllm.steering.report import Report

    rng = np.random.default_rng(0)
    questions = [Question(f"q-{n}", (b"",), f"Where is it? {n}", "left") for n in range(count)]
    boxes = [
        Boxes((np.array([[0.0, 0, 20, 20]]),), ("mug",)) if boxed and n % 10 else None
        for n in range(count)
    ]
    collector = Collector(boxes)
    methods = {"base": Off()} | ({"scaling": ScalingVis(2.0)} if steered else {})
    answers = []
    for number in range(count):
        right = rng.random() < 0.6
        weights = rng.dirichlet(np.ones(17), (12, 8))[..., :16] * rng.random()
        weights[5, 3] *= 0.5
        weights[5, 3, 0] += 0.2 * right + 0.3 * rng.random()
        cells = grid(80, 80, 4, 4)
        collector.add(number, 0, make_maps(weights, cells, unknown=unknown))
        texts = ["left" if right else "right"]
        if steered:
            more = weights * 1.2
            collector.add(number, 1, make_maps(weights, cells, after=more, unknown=unknown))
            texts.append("left" if (number % 4 == 0) or (right and number % 9) else "right")
        report = Report("scaling", None, 2.0, True).as_dict()
        answers.append([Answer(text, (1,), report) for text in texts])
    shares = collector.shares(range(count), len(methods))
    benchmark = Benchmark("made_up", tuple(questions), contains, lenient=True)
    outcomes = judge(benchmark, questions, methods, answers)
    measure = "boxes" if "boxes" in shares.measures else "image"
    facts = {"model": "made-up", "questions": count}
    return Diagnosis(
        "made_up",
        "all",
        questions,
        boxes,
        shares,
        outcomes["base"],
        outcomes.get("scaling"),
        measure,
        facts,
    )
