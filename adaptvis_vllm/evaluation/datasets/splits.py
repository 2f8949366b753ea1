"""The split into 20% for validation and 80% for test of AdaptVis' code."""

from __future__ import annotations

import random

SEED = 1
SHARE = 0.2


def validation_and_test(count: int, seed: int = SEED) -> dict[str, tuple[int, ...]]:
    """Indices of both, ascending.

    That code draws int(0.2 * count) of them with Python's `random.sample`, by default after
    `random.seed(1)`, and keeps what it drew in a file. Its authors' files are not published:
    this is the draw that the same seed gives on a generator that nothing else has used.
    """
    chosen = sorted(random.Random(seed).sample(range(count), int(SHARE * count)))
    drawn = set(chosen)
    return {
        "validation": tuple(chosen),
        "test": tuple(i for i in range(count) if i not in drawn),
    }
