"""Scenes and questions about them, each made from its seed, split and number alone.

Every picture holds a small object and a piece of furniture that it is left of, right of,
on or under, and perhaps distractors. Training shows each pair's usual relations more often.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from spatial.backgrounds import background, distance, hsv
from spatial.furniture import FURNITURE
from spatial.layout import INVERSE, RELATIONS, place_free, place_pair
from spatial.objects import HELD_OUT_STYLE, SMALL, Box, Colour, Look, Pen
from spatial.questions import QUESTION

NAMES = (*SMALL, *FURNITURE)
KINDS = ("plain", "distractors", "shifted")
# How often training shows a pair in its first, second, third and fourth usual relation.
WEIGHTS = (0.5, 0.32, 0.12, 0.06)
FAMILIAR = 2
SIZE, SHIFTED_SIZE = (128, 128), (160, 160)
FINER = 2  # drawn so many times larger, for smooth edges


@dataclass(frozen=True)
class Scene:
    """familiar: whether training shows this pair often in this relation. placed: names and
    boxes, from the back to the front."""

    image: Image.Image
    subject: str
    reference: str
    answer: str
    kind: str
    familiar: bool
    distractors: int
    placed: list[tuple[str, Box]]

    @property
    def question(self) -> str:
        return QUESTION.format(self.subject, self.reference)

    @property
    def inverse(self) -> str:
        """The answer with subject and reference exchanged."""
        return INVERSE[self.answer]

    def patches(self, count: int) -> list[int]:
        """What is at the middle of each of count x count patches: 0, or 1 + index in NAMES."""
        found = [0] * count**2
        for name, (x0, y0, x1, y1) in self.placed:
            for y in range(round(y0 * count), round(y1 * count)):
                for x in range(round(x0 * count), round(x1 * count)):
                    found[y * count + x] = 1 + NAMES.index(name)
        return found


def usual_relations(subject: str, reference: str) -> list[str]:
    """A pair's relations, from the most to the least frequent in training."""
    if subject in FURNITURE:
        return [INVERSE[relation] for relation in usual_relations(reference, subject)]
    order = list(RELATIONS)
    Random(f"usual {subject} {reference}").shuffle(order)
    return order


def training_scene(seed: int, stage: str, number: int) -> Scene:
    """Half with one or two distractors, relations as usual as they are."""
    rng = Random(f"train {stage} {seed} {number}")
    kind = rng.choice(("plain", "distractors"))
    subject, reference = _pair(rng)
    answer = rng.choices(usual_relations(subject, reference), WEIGHTS)[0]
    count = rng.choice((1, 1, 1, 2)) if kind == "distractors" else 0
    return _scene(rng, kind, subject, reference, answer, count)


def held_out_scene(seed: int, split: str, number: int, kind: str) -> Scene:
    """All relations equally often, in turn; kind "shifted" draws what training never shows."""
    rng = Random(f"{split} {seed} {number}")
    subject, reference = _pair(rng)
    answer = RELATIONS[number % len(RELATIONS)]
    count = {"plain": 0, "distractors": 1, "shifted": rng.randint(0, 1)}[kind]
    return _scene(rng, kind, subject, reference, answer, count)


def _pair(rng: Random) -> tuple[str, str]:
    """Mostly small object to furniture, sometimes the other way round."""
    pair = rng.choice(list(SMALL)), rng.choice(list(FURNITURE))
    return pair if rng.random() < 0.7 else pair[::-1]


def _scene(rng: Random, kind: str, subject: str, reference: str, answer: str, count: int) -> Scene:
    shifted = kind == "shifted"
    if subject in SMALL:
        small, furniture, relation = subject, reference, answer
    else:
        small, furniture, relation = reference, subject, INVERSE[answer]
    placed: list[tuple[str, Box]] = []
    while not placed:
        boxes = place_pair(rng, small, furniture, relation, shifted=shifted)
        placed = [(furniture, boxes[1]), (small, boxes[0])]
        for name in _others(rng, small, furniture, count):
            spot = place_free(rng, name, [box for _, box in placed])
            if spot is None:
                placed = []
                break
            placed.insert(0, (name, spot))
    image = _draw(rng, placed, shifted)
    familiar = answer in usual_relations(subject, reference)[:FAMILIAR]
    return Scene(image, subject, reference, answer, kind, familiar, count, placed)


def _others(rng: Random, small: str, furniture: str, count: int) -> list[str]:
    names = []
    for _ in range(count):
        pool = SMALL if rng.random() < 0.7 else FURNITURE
        names.append(rng.choice([n for n in pool if n not in (small, furniture, *names)]))
    return names


def _draw(rng: Random, placed: list[tuple[str, Box]], shifted: bool) -> Image.Image:
    width, height = SHIFTED_SIZE if shifted else SIZE
    size = (width * FINER, height * FINER)
    image, base = background(rng, size, shifted=shifted)
    draw = ImageDraw.Draw(image)
    for name, box in placed:
        look = _look(rng, base, shifted)
        pen = Pen(draw, box, size, look)
        (FURNITURE[name].draw if name in FURNITURE else SMALL[name][0])(pen, look)
    return image.reduce(FINER)


def _look(rng: Random, base: Colour, shifted: bool) -> Look:
    main, accent = _colour(rng, base), _colour(rng, base)
    style = HELD_OUT_STYLE if shifted and rng.random() < 0.5 else rng.randrange(HELD_OUT_STYLE)
    return Look(main, accent, style, flip=rng.random() < 0.5, outline=rng.random() < 0.3)


def _colour(rng: Random, base: Colour) -> Colour:
    while True:
        colour = hsv(rng.random(), rng.uniform(0.25, 1.0), rng.uniform(0.25, 1.0))
        if distance(colour, base) > 90:
            return colour
