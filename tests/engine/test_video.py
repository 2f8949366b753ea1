"""Videos in rows: read as vLLM reads them, answered as by the reference."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from checkpoints.families import FAMILIES
from checkpoints.images import make_image
from PIL import Image
from support.engine import close, inspect_models_here, make_llm

from adaptvis_vllm.files.media import decode_video
from adaptvis_vllm.offline.look import answered, chosen
from adaptvis_vllm.offline.runner import RowRunner
from adaptvis_vllm.offline.schema import parse_row
from adaptvis_vllm.reference.model import ReferenceModel
from adaptvis_vllm.reference.rows import run

FAMILY = FAMILIES["qwen2.5-vl"]
RAW = f"USER: {FAMILY.image} {FAMILY.video}\nWhich is brighter? ASSISTANT:"
NO_VIDEO = "data:video/mp4;base64," + base64.b64encode(b"?").decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip.mp4, eight frames at 4 a second; 0.png to 3.png of its size; wide.png is not."""
    path = tmp_path_factory.mktemp("video")
    writer = cv2.VideoWriter(str(path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 4, (56, 56))
    for number in range(8):
        picture = make_image(25 * number)
        writer.write(np.asarray(picture)[..., ::-1])
        if number < 4:
            picture.save(path / f"{number}.png")
    writer.release()
    make_image(18).save(path / "wide.png")
    return path


def uri_of(video: Any, folder: Path) -> str:
    (uri,) = parse_row({"video": video, "prompt": "?"}, folder).videos
    return uri


def test_a_file_from_everywhere(folder: Path, tmp_path: Path) -> None:
    uri = uri_of("clip.mp4", folder)
    data = (folder / "clip.mp4").read_bytes()
    for source in (data, {"bytes": data, "path": None}, uri, folder / "clip.mp4"):
        assert uri_of(source, tmp_path) == uri


def test_frames_are_taken_as_the_models_processor_wants_them(folder: Path) -> None:
    """Of a file of two seconds: all that vLLM takes of any, and two a second for Qwen2.5-VL."""
    uri = uri_of("clip.mp4", folder)
    frames, metadata = decode_video(uri, None)
    assert frames.shape == (8, 56, 56, 3)
    frames, metadata = decode_video(uri, "Qwen2VLVideoProcessor")
    assert frames.shape == (4, 56, 56, 3)
    assert metadata["frames_indices"] == [0, 2, 4, 6]
    assert decode_video(uri, None, {"video": {"num_frames": 2}})[0].shape[0] == 2


def test_a_list_of_frames_stays_as_it_is(folder: Path) -> None:
    names = [f"{number}.png" for number in range(4)]
    frames, metadata = decode_video(uri_of(names, folder), "Qwen2VLVideoProcessor")
    for name, frame in zip(names, frames, strict=True):
        assert np.array_equal(frame, np.asarray(Image.open(folder / name)))
    assert (metadata["fps"], metadata["frames_indices"]) == (1, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("video", "error"),
    [
        ("absent.mp4", "video: no such file 'absent.mp4'"),
        ("0.png", "video: '0.png' is no readable video"),
        (NO_VIDEO, "video: 'data:video/mp4;base64,Pw==' is no readable video"),
        ("data:video/mp4,x", "is no readable video"),
        ("ftp://host/clip.mp4", "video: 'ftp://host/clip.mp4' is no readable video: it is no http"),
        (3, "video must be a path, URL, data URI, bytes or a list of frames, not 3"),
        ([], "video must have 1 to 32 frames, not 0"),
        (["0.png"] * 33, "video must have 1 to 32 frames, not 33"),
        (["0.png", "absent.png"], "video: no such file 'absent.png'"),
        (["0.png", "wide.png"], "video: frames must have one size"),
    ],
)
def test_a_bad_video(video: Any, error: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=error):
        parse_row({"video": video, "question": "?"}, folder)


def test_a_video_that_turns_out_to_be_damaged() -> None:
    with pytest.raises(ValueError, match="video cannot be decoded: Could not open video stream"):
        decode_video(NO_VIDEO, None)


def test_videos_of_messages_are_inside_them(folder: Path) -> None:
    part = {"type": "video_url", "video_url": {"url": "absent.mp4"}}
    messages = [{"role": "user", "content": [part]}]
    with pytest.raises(ValueError, match=r"messages\[0\].content: no such file 'absent.mp4'"):
        parse_row({"messages": messages}, folder)
    with pytest.raises(ValueError, match="video does not go with messages"):
        parse_row({"messages": messages, "video": "clip.mp4"}, folder)


def test_rows_with_videos(folder: Path, tmp_path: Path) -> None:
    model = FAMILY.make(tmp_path / "model")
    frames = [f"{number}.png" for number in range(4)]
    ask = {"video": "clip.mp4", "question": "Where is the red cat?", "max_tokens": 6}
    part = {"type": "video_url", "video_url": {"url": "clip.mp4"}}
    rows: list[dict[str, Any]] = [
        ask,
        ask | {"adaptvis": {"alpha": 3.0, "span": "video"}},
        ask | {"adaptvis": {"alpha": 3.0, "span": "image"}},
        ask | {"video": frames},
        {"image": "0.png", "video": "clip.mp4", "prompt": RAW, "adaptvis": {"alpha": 0.3}},
        {"image": "0.png", "video": frames, "prompt": RAW, "adaptvis": {"preset": "vg"}},
        {"messages": [{"role": "user", "content": [part]}], "adaptvis": {"preset": "coco"}},
        {"image": "0.png", "question": "?", "adaptvis": {"alpha": 3.0, "span": "video"}},
        {"video": "0.png", "question": "?"},
        {"video": emptied(folder / "clip.mp4"), "question": "?"},
    ]
    inspect_models_here()
    llm = make_llm(model, limit_mm_per_prompt={"image": 1, "video": 1})
    try:
        ours = list(RowRunner(llm, folder, 5).run(rows))
        both = {"images": [folder / "0.png"], "video": uri_of("clip.mp4", folder), "question": "?"}
        looked = answered(llm, both | {"max_tokens": 2}, chosen({"alpha": 3.0}, None))
    finally:
        close(llm)
    assert [len(one.frames) for one in looked.pictures] == [1, 4]
    assert looked.maps is not None
    assert looked.maps.unknown == ""
    of_video = looked.maps.image == 1
    assert set(looked.maps.frame[of_video]) == {0, 2}  # two frames make one position
    assert set(looked.maps.frame[~of_video]) == {-1}
    theirs = list(run(ReferenceModel(model), rows, folder, 5))
    good = len(rows) - 2
    for row, other in zip(ours[:good], theirs[:good], strict=True):
        assert row["error"] is None
        assert row["token_ids"] == other["token_ids"]
        assert row["logprobs"][0][0][1] == pytest.approx(other["logprobs"][0][0][1], abs=1e-4)
        assert row["adaptvis"]["reason"] == other["adaptvis"]["reason"]
    assert ours[1]["logprobs"][0] != ours[0]["logprobs"][0] != ours[3]["logprobs"][0]
    assert ours[1]["adaptvis"]["steered"]
    assert ours[2]["adaptvis"]["reason"] == "no image"
    assert ours[7]["adaptvis"]["reason"] == "no video"
    for row, other in zip(ours[good:], theirs[good:], strict=True):
        assert row["text"] is None
        assert row["error"] == other["error"]
        assert row["error"].startswith("video: ")


def emptied(path: Path) -> bytes:
    """A file whose header is right and whose frames are zeros."""
    data = path.read_bytes()
    first, last = data.index(b"mdat") + 4, data.index(b"moov") - 4
    return data[:first] + bytes(last - first) + data[last:]
