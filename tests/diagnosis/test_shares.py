"""Shares of attention in boxes, against cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.map_cases import grid, make_maps

from adaptvis_vllm.diagnosis.boxes import Boxes
from adaptvis_vllm.diagnosis.collect import Collector
from adaptvis_vllm.diagnosis.shares import MEASURES, disjoint, fractions, inside, shares

NAN = [float("nan")] * 4


def boxes(*pictures: Any) -> Boxes:
    return Boxes(tuple(np.array(p, float).reshape(-1, 4) for p in pictures), ("mug",))


def test_by_hand() -> None:
    """Two columns of 10 x 20; the box takes all of the left, and half of the right one's height."""
    maps = make_maps([[[0.1, 0.3], [0.2, 0.0]]], grid(20, 20, 2, 1))
    seen = inside(maps, boxes([[0, 0, 10, 20], [10, 0, 20, 10]]))
    assert seen is not None
    np.testing.assert_allclose(seen.fraction, [1, 0.5])
    assert seen.even == 0.75
    found = shares(maps, "before", seen)
    assert tuple(found) == MEASURES
    np.testing.assert_allclose(found["image"], [[0.4, 0.2]], rtol=1e-3)
    np.testing.assert_allclose(found["boxes"], [[0.25, 0.2]], rtol=1e-3)
    np.testing.assert_allclose(found["inside"], [[0.625, 1.0]], rtol=1e-3)
    np.testing.assert_allclose(found["lift"], [[0.625 / 0.75, 1 / 0.75]], rtol=1e-3)


def test_an_even_look_has_lift_1_whatever_the_box() -> None:
    maps = make_maps(np.full((2, 3, 12), 0.05), grid(64, 48, 4, 3))
    for box in ([3, 5, 9, 11], [0, 0, 64, 48], [-5, 20, 33.3, 99]):
        found = shares(maps, "before", inside(maps, boxes([box])))
        np.testing.assert_allclose(found["lift"], 1, rtol=1e-5)


def test_overlapping_boxes_count_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        low = rng.integers(0, 20, (5, 2))
        some = np.hstack([low, low + rng.integers(1, 12, (5, 2))]).astype(float)
        painted = np.zeros((40, 40))
        for x0, y0, x1, y1 in some.astype(int):
            painted[y0:y1, x0:x1] = 1
        parts = disjoint(some)
        assert np.prod(parts[:, 2:] - parts[:, :2], axis=1).sum() == painted.sum()
        cells = grid(40, 40, 5, 4)
        expected = [painted[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in cells.astype(int)]
        np.testing.assert_allclose(fractions(cells, some), expected)


def test_positions_without_a_rectangle_are_on_the_image_and_nowhere_else() -> None:
    """As newlines are: in the share on the image, neither inside nor outside of a box."""
    maps = make_maps([[[0.2, 0.3, 0.5]]], [[0, 0, 10, 10], [10, 0, 20, 10], NAN])
    found = shares(maps, "before", inside(maps, boxes([[0, 0, 10, 10]])))
    np.testing.assert_allclose(found["image"], 1, rtol=1e-3)
    np.testing.assert_allclose(found["inside"], 0.4, rtol=1e-3)
    np.testing.assert_allclose(found["lift"], 0.8, rtol=1e-3)


def test_each_picture_has_its_own_boxes() -> None:
    maps = make_maps(
        [[[0.1, 0.2, 0.3, 0.4]]], [*grid(20, 10, 2, 1), *grid(20, 10, 2, 1)], image=[0, 0, 1, 1]
    )
    found = shares(maps, "before", inside(maps, boxes([[0, 0, 10, 10]], [])))
    np.testing.assert_allclose(found["boxes"], 0.1, rtol=1e-3)
    found = shares(maps, "before", inside(maps, boxes([], [[10, 0, 20, 10]])))
    np.testing.assert_allclose(found["boxes"], 0.4, rtol=1e-3)


def test_nothing_on_the_picture_prefers_nothing() -> None:
    maps = make_maps([[[0.0, 0.0]]], grid(20, 10, 2, 1))
    found = shares(maps, "before", inside(maps, boxes([[0, 0, 5, 10]])))
    assert (found["inside"].item(), found["lift"].item()) == (0.25, 1)


def test_what_no_position_sees_and_unknown_geometry_leave_the_image_alone() -> None:
    maps = make_maps([[[0.1, 0.3]]], grid(20, 10, 2, 1))
    assert inside(maps, boxes([[30, 0, 40, 10]])) is None
    unknown = make_maps([[[0.1, 0.3]]], [NAN, NAN], unknown="the processor is not known")
    assert inside(unknown, boxes([[0, 0, 5, 10]])) is None
    assert tuple(shares(unknown, "before", None)) == ("image",)


def test_maps_are_reduced_as_they_come() -> None:
    """Unsteered from before, steered from after; NaN where a question has no boxes."""
    cells = grid(20, 10, 2, 1)
    collector = Collector([boxes([[0, 0, 10, 10]]), None, boxes([[0, 0, 10, 10]])])
    for number in (0, 1, 2):
        plain = make_maps([[[0.1 * (number + 1), 0.3]]], cells)
        assert collector.add(number, 0, plain) is None
        steered = make_maps([[[0.1, 0.3]]], cells, after=[[[0.2 * (number + 1), 0.1]]])
        collector.add(number, 1, steered)
    assert all(a.shape == (1, 1) for kept in collector.found.values() for a in kept.values())
    found = collector.shares([0, 1], 2)
    assert found.boxed.tolist() == [True, False]
    assert found.rows("image").tolist() == [0, 1]
    assert found.rows("lift").tolist() == [0]
    np.testing.assert_allclose(found.before["boxes"].ravel(), [0.1, np.nan], rtol=1e-3)
    assert found.after is not None
    np.testing.assert_allclose(found.after["boxes"].ravel(), [0.2, np.nan], rtol=1e-3)
    np.testing.assert_allclose(found.after["image"].ravel(), [0.3, 0.5], rtol=2e-3)


def test_an_output_without_maps_is_told() -> None:
    class Output:
        adaptvis_maps = None

    assert Collector([None]).see(0, 0, Output()) == "the engine gave no attention maps for it"


@pytest.mark.parametrize("which", ["before", "after"])
def test_an_unsteered_map_has_one_answer(which: str) -> None:
    maps = make_maps([[[0.25, 0.5]]], grid(20, 10, 2, 1))
    np.testing.assert_allclose(shares(maps, which, None)["image"], 0.75)
