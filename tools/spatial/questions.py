"""What is asked about a scene."""

from __future__ import annotations

from random import Random

QUESTION = "Where is the {} in relation to the {}? Answer with left, right, on or under."
# Of training only: where an object is, so that names are learned before relations are.
SIDE = "In which half of the picture is the {}? Answer with left or right."
HEIGHT = "In which half of the picture is the {}? Answer with upper or lower."
ANSWERS = ("left", "right", "on", "under", "upper", "lower")
PER_SCENE = 4


def training_questions(rng: Random, scene) -> list[tuple[str, str]]:
    """The relation both ways round, then the two halves of any two objects."""
    side, height = rng.choice(scene.placed), rng.choice(scene.placed)
    return [
        (QUESTION.format(scene.subject, scene.reference), scene.answer),
        (QUESTION.format(scene.reference, scene.subject), scene.inverse),
        (SIDE.format(side[0]), "left" if side[1][0] + side[1][2] < 1 else "right"),
        (HEIGHT.format(height[0]), "upper" if height[1][1] + height[1][3] < 1 else "lower"),
    ]
