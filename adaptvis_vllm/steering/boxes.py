"""Regions of a picture: `boxes` of `SteeringParams`.

Where image positions lie is geometry's to know, in the front end; the positions that it finds
travel with a request's parameters. numpy is imported where it is needed: fields stay light.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptvis_vllm.steering.words import BadParameter, is_number, number, show

BOXES_MAX = 64
EDGE_MAX = 1e6  # pixels


def canonical_boxes(value: Any, full: str) -> tuple[float, ...] | None:
    """Flat numbers x0, y0, x1, y1 of each box: "0,0,10.5,20" and [0, 0, 10.5, 20] both become
    (0.0, 0.0, 10.5, 20.0); "none" becomes None."""
    if isinstance(value, str) and value == "none":
        return None
    items = [number(part) for part in value.split(",")] if isinstance(value, str) else value
    numbers = list(items) if isinstance(items, list | tuple) else []
    if not (
        4 <= len(numbers) <= 4 * BOXES_MAX
        and len(numbers) % 4 == 0
        and all(is_number(edge) and 0 <= edge <= EDGE_MAX for edge in numbers)
        and all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in boxes_of(numbers))
    ):
        raise BadParameter(
            f"{full} must be 1 to {BOXES_MAX} boxes, each four numbers x0, y0, x1, y1 of pixels "
            f"from 0 to {EDGE_MAX:.0f} with x0 < x1 and y0 < y1, such as '0,0,320,240', or 'none', "
            f"not {show(value)}",
            "boxes",
        )
    return tuple(float(edge) for edge in numbers)


def boxes_of(numbers: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """[4 * B] flat numbers -> B boxes."""
    edges = [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
    return edges  # type: ignore[return-value]


def held_in(areas: Any, boxes: Sequence[float]) -> Any:
    """[P] bool, which positions lie in a box: their centre does, edges included.

    areas: [P, 4] float, of all positions of the picture; NaN where one has none. Such a one is held
    where all that have an area are: the whole picture is what no box gives.
    """
    import numpy as np

    x, y = (areas[:, 0] + areas[:, 2]) / 2, (areas[:, 1] + areas[:, 3]) / 2
    held = np.zeros(len(areas), bool)
    for x0, y0, x1, y1 in boxes_of(boxes):
        held |= (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)
    none = np.isnan(x)
    return held | none if held[~none].all() and held.any() else held


def write_positions(positions: Any) -> str:
    """Ascending prompt positions [P] as text, for a request's parameters."""
    from adaptvis_vllm.steering.span import pack_bits

    return pack_bits(positions).astype("<i4").tobytes().hex()


def read_positions(text: str) -> Any:
    """[P] int64."""
    import numpy as np

    bits = np.frombuffer(bytes.fromhex(text), np.uint8)
    return np.flatnonzero(np.unpackbits(bits, bitorder="little"))
