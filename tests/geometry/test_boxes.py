"""What lies in a position's box, and nothing else, is in its embedding: for every family, through
vLLM's processor and vision code with layers that do nothing (`towers`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from checkpoints.families import FAMILIES, Family
from PIL import Image
from support.changes import (
    RASTERS,
    Raster,
    brighter,
    changed,
    check_changes,
    chosen,
    inside,
    margins,
    meets,
    noise,
    pixel,
)
from support.family_cases import make_video
from support.towers import Tower, one_process

from adaptvis_vllm.geometry.locate import locate, sizes
from adaptvis_vllm.steering.span import image_positions

SIZES = ((336, 336), (401, 203), (97, 523), (1000, 333), (20, 15))
VIDEOS = [name for name in RASTERS if FAMILIES[name].video]


@dataclass(frozen=True)
class Case:
    family: Family
    raster: Raster
    tower: Tower


@pytest.fixture(scope="module", autouse=True)
def process() -> Iterator[None]:
    with one_process():
        yield


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of the family that the test is called with."""
    family = FAMILIES[request.param]
    path = family.make(tmp_path_factory.mktemp("towers") / request.param)
    return Case(family, RASTERS[request.param], Tower(path))


def every_family(names: Any) -> Any:
    return pytest.mark.parametrize("case", names, indirect=True, scope="module")


def test_every_steered_family_is_tested() -> None:
    assert set(RASTERS) == {name for name, family in FAMILIES.items() if not family.refused}


@every_family(RASTERS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_a_change_in_a_box_changes_its_position(case: Case, size: tuple[int, int]) -> None:
    """As `check_changes` says."""
    exact = check_changes(
        case.tower, case.raster, f"USER: {case.family.image}\nWhere? ASSISTANT:", size
    )
    assert exact > 3 or min(size) < 100


@every_family(RASTERS)
def test_sizes_of_all_kinds(case: Case) -> None:
    """As many boxes as vLLM makes placeholders: `locate` refuses another number. They cover the
    picture, LLaVA-1.5's its middle."""
    prompt = f"USER: {case.family.image}\nWhere? ASSISTANT:"
    sides = np.random.default_rng(0).geometric(0.006, (40, 2)) + 16
    for width, height in sides.tolist():
        picture = Image.new("RGB", (width, height), (90, 120, 60))
        boxes = case.tower.locate(prompt, {"image": picture}).boxes
        assert (boxes[:, :2] < boxes[:, 2:]).all(1).sum() == (~np.isnan(boxes[:, 0])).sum()
        low, high = np.nanmin(boxes, 0)[:2], np.nanmax(boxes, 0)[2:]
        whole = case.family.name != "LLaVA-1.5"
        shown = np.array([width, height]) if whole else np.full(2, min(width, height))
        assert high - low == pytest.approx(shown, abs=4)


@every_family(RASTERS)
def test_each_picture_has_its_own_boxes(case: Case) -> None:
    """Two of different sizes with text between them: a change in one leaves the other alone."""
    prompt = f"USER: {case.family.image}\nand {case.family.image}\nWhich? ASSISTANT:"
    pixels = [noise(230, 170), noise(150, 260, seed=1)]
    media = {"image": [Image.fromarray(p) for p in pixels]}
    found, before = case.tower.locate(prompt, media), case.tower.embed(prompt, media)
    features = case.tower.features(prompt, media)
    assert found.positions.tolist() == image_positions(features, "embeddings").tolist()
    assert sorted(set(found.image)) == [0, 1]
    assert set(found.frame) == {-1}
    bare = [dataclasses.replace(feature, data=None) for feature in features]  # the engine has it
    again = locate(case.tower.info, bare, sizes(case.tower.info.parse_mm_data(media)))
    assert np.array_equal(again.boxes, found.boxes, equal_nan=True)
    for number, (width, height) in enumerate([(230, 170), (150, 260)]):
        boxes = found.boxes[found.image == number]
        both_ends = np.nanmin(boxes, 0)[:2] + np.nanmax(boxes, 0)[2:]
        assert both_ends.tolist() == pytest.approx([width, height], abs=4)  # as far from each side
        box = pixel(boxes[chosen(boxes, 0)[0]])
        images = [Image.fromarray(p) for p in pixels]
        images[number] = Image.fromarray(brighter(pixels[number], box))
        different = changed(before, case.tower.embed(prompt, {"image": images}))
        assert different.any()
        assert set(found.image[different]) == {number}


@every_family(VIDEOS)
@pytest.mark.parametrize("count", [4, 5])
def test_frames_of_a_video(case: Case, count: int) -> None:
    """A change of one frame changes the positions of that frame, or of the two frames that are
    merged, and there those of the box, its edges blurred as a picture's."""
    prompt = f"USER: {case.family.video}\nWhere? ASSISTANT:"
    frames = np.stack([noise(150, 110, seed) for seed in range(count)])
    metadata = make_video(0, count)[1]
    media: dict[str, Any] = {"video": [(frames, metadata)]}
    found, before = case.tower.locate(prompt, media), case.tower.embed(prompt, media)
    vision = case.tower.config.model_config.hf_config.vision_config
    step = getattr(vision, "temporal_patch_size", 1)
    assert sorted(set(found.frame) - {-1}) == list(range(0, count, step))
    assert ((found.frame < 0) == np.isnan(found.boxes[:, 0])).all()
    reach = margins(found.boxes, case.raster)
    for frame in range(count):
        of_frame = found.frame == frame - frame % step
        for position in np.flatnonzero(of_frame)[[0, 1, -1]]:
            box = inside(found.boxes[position], reach[position])
            assert box is not None
            after = frames.copy()
            after[frame] = brighter(frames[frame], box)
            media = {"video": [(after, metadata)]}
            different = changed(before, case.tower.embed(prompt, media))
            assert different[position]
            assert not different[~of_frame].any()
            assert not different[~meets(found.boxes, box, reach)].any()


@every_family(VIDEOS)
def test_a_video_between_pictures(case: Case) -> None:
    """They are counted as they appear in the prompt, whatever they are."""
    image, video = case.family.image, case.family.video
    prompt = f"USER: {image} then {video} then {image}\nWhere? ASSISTANT:"
    frames = np.stack([noise(90, 70, seed) for seed in range(2)])
    pictures = [Image.fromarray(noise(*size)) for size in ((80, 60), (60, 80))]
    media = {"image": pictures, "video": [(frames, make_video(0, 2)[1])]}
    found = case.tower.locate(prompt, media)
    assert sorted(set(found.image)) == [0, 1, 2]
    assert set(found.image[found.frame >= 0]) == {1}
    ends = [np.nanmax(found.boxes[found.image == i], 0)[2:].tolist() for i in range(3)]
    assert ends == [[80, 60], [90, 70], [60, 80]]
