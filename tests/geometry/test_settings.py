"""Settings of processors that decide where positions lie, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints.families import FAMILIES
from checkpoints.llava_variants import make_llava_onevision
from checkpoints.weights import edit_json
from PIL import Image
from support.changes import RASTERS, Raster, check_changes, noise
from support.family_cases import make_video
from support.towers import Tower, one_process

from adaptvis_vllm.geometry.locate import locate, sizes
from adaptvis_vllm.geometry.model import UnknownGeometry
from adaptvis_vllm.geometry.views import Size

WIDE, TALL, SQUARE = (401, 203), (97, 323), (300, 300)
LLAVA = "USER: <image>\nWhere? ASSISTANT:"


@pytest.fixture(scope="module", autouse=True)
def process() -> Iterator[None]:
    with one_process():
        yield


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Tower]:
    """A family's tower. config, processor, image: changed values of its files."""

    def tower(
        name: str,
        *,
        path: Path | None = None,
        config: dict[str, Any] | None = None,
        image: dict[str, Any] | None = None,
        processor: dict[str, Any] | None = None,
        **options: Any,
    ) -> Tower:
        path = path or FAMILIES[name].make(tmp_path / name)
        file = path / "processor_config.json"
        given = json.loads(file.read_text())["image_processor"]
        edit_json(file, image_processor=given | (image or {}), **(processor or {}))
        edit_json(path / "config.json", **(config or {}))
        return Tower(path, **options)

    return tower


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tower]:
    """A family's tower as it is made; one for all tests of the module."""
    folder, towers = tmp_path_factory.mktemp("plain"), {}

    def tower(name: str) -> Tower:
        if name not in towers:
            towers[name] = Tower(FAMILIES[name].make(folder / name))
        return towers[name]

    return tower


def prompt(name: str) -> str:
    return f"USER: {FAMILIES[name].image}\nWhere? ASSISTANT:"


# Settings that are known


def test_pan_and_scan_of_gemma3(make: Callable[..., Tower]) -> None:
    arguments = {
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 20,
        "pan_and_scan_max_num_crops": 3,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
    tower = make("gemma3", arguments=arguments)
    for size, crops in ((WIDE, 2), (TALL, 3), (SQUARE, 0)):
        found = tower.locate(prompt("gemma3"), {"image": Image.fromarray(noise(*size))})
        assert len(found.boxes) == 16 * (1 + crops)
        assert check_changes(tower, RASTERS["gemma3"], prompt("gemma3"), size) > 3


def test_many_tiles_of_onevision_are_interpolated(make: Callable[..., Tower]) -> None:
    grid = {"image_grid_pinpoints": [[224, 224], [112, 448], [448, 112]]}
    tower = make("llava-onevision", config=grid, image=grid)
    for size in ((800, 200), TALL, SQUARE):
        tiles = tower.locate(LLAVA, {"image": Image.fromarray(noise(*size))}).boxes[16:]
        overlap = (tiles[1:, 0] < tiles[:-1, 2])[tiles[1:, 0] > tiles[:-1, 0]]  # of neighbours
        assert overlap.any()
        assert check_changes(tower, RASTERS["llava-onevision"], LLAVA, size) > 3


def test_tiles_that_are_no_whole_number_of_patches(
    make: Callable[..., Tower], tmp_path: Path
) -> None:
    """60 pixels are four patches of 14 and 4 pixels that the vision tower leaves out."""
    tower = make("", path=make_llava_onevision(tmp_path / "odd", size=60))
    for size in (WIDE, TALL, (200, 200)):
        assert check_changes(tower, Raster(14, even=True), LLAVA, size) > 3


@pytest.mark.parametrize(
    "image",
    [
        {"size": {"height": 56, "width": 56}, "do_center_crop": False},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True},
    ],
    ids=["stretched", "padded to a square"],
)
def test_llava_sees_the_whole_picture(make: Callable[..., Tower], image: dict[str, Any]) -> None:
    tower = make("llava", image=image)
    found = tower.locate(LLAVA, {"image": Image.fromarray(noise(*WIDE))})
    assert np.nanmin(found.boxes) == 0
    assert np.nanmax(found.boxes, 0)[2:].tolist() == [*WIDE]
    for size in (WIDE, TALL):
        assert check_changes(tower, Raster(14, even="do_pad" in image), LLAVA, size) > 3


def test_a_class_token_has_no_box(make: Callable[..., Tower]) -> None:
    full = {"vision_feature_select_strategy": "full"}
    tower = make("llava", config=full, processor=full)
    found = tower.locate(LLAVA, {"image": Image.fromarray(noise(*WIDE))})
    assert np.isnan(found.boxes).all(1).tolist() == [True] + [False] * 16
    assert check_changes(tower, RASTERS["llava"], LLAVA, WIDE) > 3


@pytest.mark.parametrize(
    ("name", "changed", "count"),
    [
        ("internvl3", {"arguments": {"crop_to_patches": False}}, 9),
        # The processor's own default comes before the image processor's file.
        ("internvl3", {"image": {"crop_to_patches": False}}, 45),
        ("idefics3", {"image": {"do_image_splitting": False}}, 4),
    ],
)
def test_one_tile(
    make: Callable[..., Tower], name: str, changed: dict[str, Any], count: int
) -> None:
    tower = make(name, **changed)
    found = tower.locate(prompt(name), {"image": Image.fromarray(noise(*SQUARE))})
    assert len(found.boxes) == count
    assert check_changes(tower, RASTERS[name], prompt(name), SQUARE) > 3


def test_a_request_may_ask_for_fewer_pixels(make: Callable[..., Tower]) -> None:
    tower = make("qwen2.5-vl", arguments={"max_pixels": 6 * 28**2})
    found = tower.locate(prompt("qwen2.5-vl"), {"image": Image.fromarray(noise(*WIDE))})
    assert len(found.boxes) <= 6
    assert check_changes(tower, RASTERS["qwen2.5-vl"], prompt("qwen2.5-vl"), WIDE) > 2


def test_a_picture_is_turned_as_its_exif_says(plain: Callable[[str], Tower]) -> None:
    tower = plain("pixtral")
    picture = Image.fromarray(noise(*WIDE))
    picture.getexif()[0x0112] = 6
    media = {"image": picture}
    assert sizes(tower.info.parse_mm_data(media)) == {"image": [Size(WIDE[1], WIDE[0])]}
    assert np.nanmax(tower.locate(prompt("pixtral"), media).boxes, 0)[2:].tolist() == [203, 401]


# What is refused


def test_another_architecture() -> None:
    config = SimpleNamespace(architecture="KimiVLForConditionalGeneration")
    info = SimpleNamespace(ctx=SimpleNamespace(model_config=config))
    with pytest.raises(UnknownGeometry, match="is not known of KimiVLForConditionalGeneration"):
        locate(info, [], {})


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        ("llava", {"crop_size": {"height": 70, "width": 70}}, "pads pictures to its crop_size"),
        ("llava", {"do_resize": False}, "resizes no pictures"),
        ("llava", {"size": {"longest_edge": 56}}, "is not known"),
        ("llava", {"do_pad": True}, "other than to a square"),
        (
            "llava",
            {"size": {"shortest_edge": 70}, "crop_size": {"height": 70, "width": 70}},
            "makes 70 x 70 pixels, and the vision tower sees 56 x 56",
        ),
        ("llava-next", {"size": {"shortest_edge": 70}}, "and the vision tower sees 56 x 56"),
        ("llava-onevision", {"image_grid_pinpoints": [[56, 56]]}, "image_grid_pinpoints differ"),
        ("pixtral", {"do_resize": False}, "is not known"),
        ("internvl3", {"size": {"height": 49, "width": 49}}, "and the vision tower sees 42 x 42"),
        ("gemma3", {"size": {"height": 56, "width": 56}}, "and the vision tower sees 112 x 112"),
        ("idefics3", {"max_image_size": {"longest_edge": 28}}, "the vision tower sees 56 x 56"),
    ],
)
def test_settings_that_are_not_known(
    plain: Callable[[str], Tower],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    image: dict[str, Any],
    words: str,
) -> None:
    tower = plain(name)
    media = {"image": Image.fromarray(noise(*WIDE))}
    features, found = tower.features(prompt(name), media), sizes(tower.info.parse_mm_data(media))
    locate(tower.info, features, found)
    for option, value in image.items():
        monkeypatch.setattr(tower.info.get_hf_processor().image_processor, option, value)
    with pytest.raises(UnknownGeometry, match=words):
        locate(tower.info, features, found)


@pytest.mark.parametrize("name", [name for name in RASTERS if name != "gemma3"])
def test_the_size_of_another_picture(plain: Callable[[str], Tower], name: str) -> None:
    """A wrong number of boxes is refused; that of Qwen-VL is the same, turned by a quarter."""
    tower = plain(name)
    features = tower.features(prompt(name), {"image": Image.fromarray(noise(600, 100))})
    wrong = Size(100, 600) if name.startswith("qwen") else Size(10, 10)
    if name == "llava":  # every picture has the same number: nobody can tell
        locate(tower.info, features, {"image": [wrong]})
        return
    words = "image_grid_thw is" if name.startswith("qwen") else "positions, and boxes are known of"
    with pytest.raises(UnknownGeometry, match=words):
        locate(tower.info, features, {"image": [wrong]})


def test_media_without_sizes(plain: Callable[[str], Tower]) -> None:
    tower = plain("llava")
    features = tower.features(LLAVA, {"image": Image.fromarray(noise(*WIDE))})
    with pytest.raises(UnknownGeometry, match="more images than sizes are given of"):
        locate(tower.info, features, {"image": []})
    with pytest.raises(UnknownGeometry, match="the size of image 0 is given as 2 frames of"):
        locate(tower.info, features, {"image": [Size(*WIDE, frames=2)]})
    with pytest.raises(UnknownGeometry, match="named by its uuid alone"):
        sizes(tower.info.parse_mm_data({"image": [None]}))


def test_a_video_of_internvl3(plain: Callable[[str], Tower]) -> None:
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    feature = MultiModalFeatureSpec(None, "video", "", PlaceholderRange(3, 36))
    with pytest.raises(UnknownGeometry, match="videos of InternVLForConditionalGeneration are not"):
        locate(plain("internvl3").info, [feature], {"video": [Size(90, 70, frames=4)]})


def test_embeddings_have_no_boxes(make: Callable[..., Tower]) -> None:
    import torch

    tower = make("llava", enable_mm_embeds=True)
    with pytest.raises(UnknownGeometry, match="embeddings are given, not the image"):
        sizes(tower.info.parse_mm_data({"image": torch.zeros(1, 16, 64)}))


def test_a_prompt_without_pictures(plain: Callable[[str], Tower]) -> None:
    found = locate(plain("llava").info, [], {})
    assert found.boxes.shape == (0, 4)
    assert len(found.positions) == len(found.image) == len(found.frame) == 0


def test_pruned_video_tokens(make: Callable[..., Tower]) -> None:
    tower = make("qwen2.5-vl", video_pruning_rate=0.5)
    text = f"USER: {FAMILIES['qwen2.5-vl'].video}\nWhere? ASSISTANT:"
    frames = np.stack([noise(90, 70, seed) for seed in range(4)])
    media = {"video": [(frames, make_video(0, 4)[1])]}
    with pytest.raises(UnknownGeometry, match="--video-pruning-rate keeps is not known"):
        tower.locate(text, media)
