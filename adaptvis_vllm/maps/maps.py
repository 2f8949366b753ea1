"""Where a request's last prompt row looked: `Maps`, and its file format."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

WHICH = ("before", "after", "difference")
_ARRAYS: Mapping[str, Any] = {
    "layers": np.int32,
    "positions": np.int32,
    "image": np.int32,
    "frame": np.int32,
    "boxes": np.float32,
    "sizes": np.int32,
    "before": np.float16,
    "rest_before": np.float16,
}
_AFTER = ("after", "rest_after")
_TOKENS = ("tokens", "rest_tokens")


@dataclass(frozen=True)
class Maps:
    """Attention weights (softmax over all keys of a row) towards the image positions of a prompt.

    L captured layers, H query heads of all ranks, P image positions, I pictures and videos.

    layers: [L] int32, decoder layer indices, ascending.
    positions: [P] int32, places in the prompt, ascending.
    image: [P] int32, which of the prompt's pictures and videos, counted from 0.
    frame: [P] int32, of a video the first frame in it; -1 for a picture, and where unknown.
    boxes: [P, 4] float32: x0, y0, x1, y1 in pixels of the picture as the user gave it; NaN where a
        position has no area.
    sizes: [I, 2] int32, width and height of each; 0 where unknown.
    before: [L, H, P] float16, of the last prompt row in the unsteered pass.
    after: the same in the steered pass; None for a request that was not steered.
    rest_before, rest_after: [L, H, 2] float16: the share of the prompt's first token where it is no
        image position, and that of all other text. A learned sink has what is left of 1.
    tokens, rest_tokens: [K, L, H, P] and [K, L, H, 2] float16, of the first K generated tokens'
        rows; None where none were asked for.
    unknown: why the boxes are not known, as a sentence; "" where they are.
    """

    layers: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    image: npt.NDArray[np.int32]
    frame: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.int32]
    before: npt.NDArray[np.float16]
    rest_before: npt.NDArray[np.float16]
    after: npt.NDArray[np.float16] | None = None
    rest_after: npt.NDArray[np.float16] | None = None
    tokens: npt.NDArray[np.float16] | None = None
    rest_tokens: npt.NDArray[np.float16] | None = None
    unknown: str = ""

    def weights(self, which: str = "after") -> npt.NDArray[np.float32]:
        """[L, H, P] float32: "before", "after", or the "difference", after less before.

        "after" of a request that was not steered is "before". ValueError for another name.
        """
        if which not in WHICH:
            raise ValueError(f"which must be one of {', '.join(WHICH)}, not {which!r}")
        before = self.before.astype(np.float32)
        after = before if self.after is None else self.after.astype(np.float32)
        return {"before": before, "after": after, "difference": after - before}[which]

    def share(self, which: str = "after") -> npt.NDArray[np.float32]:
        """[L, H] float32: the part of each head's attention that lies on the image."""
        return self.weights(which).sum(-1)

    def line(self, layer: int) -> int:
        """The index in L of a decoder layer; ValueError where it was not captured."""
        found = np.flatnonzero(self.layers == layer)
        if not len(found):
            raise ValueError(f"layer {layer} was not captured; captured: {self.layers.tolist()}")
        return int(found[0])

    def overlay(
        self,
        picture: Image,
        layer: int | None = None,
        *,
        which: str = "after",
        head: int | None = None,
        image: int = 0,
        frame: int | None = None,
    ) -> Image:
        """The picture with the map laid over it, as a PIL image of the picture's size.

        layer: None for the mean of all. head: None for the mean of all. image: which of the
        prompt's pictures. frame: of a video; None for all frames. ValueError for what there is no
        map of.
        """
        from adaptvis_vllm.maps.overlay import overlay

        return overlay(self, picture, layer, which=which, head=head, image=image, frame=frame)

    def save(self, file: str | Path | BinaryIO) -> None:
        """As a compressed npz: an array of each name; what is None is left out."""
        arrays = {name: getattr(self, name) for name in (*_ARRAYS, *_AFTER, *_TOKENS)}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        if self.unknown:
            arrays["unknown"] = np.array(self.unknown)
        np.savez_compressed(file, **arrays)

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        buffer = io.BytesIO()
        self.save(buffer)
        return buffer.getvalue()

    @classmethod
    def load(cls, file: str | Path | BinaryIO) -> Maps:
        """What `save` wrote; ValueError for another file."""
        try:
            with np.load(file, allow_pickle=False) as arrays:
                found = dict(arrays)
            unknown = str(found.pop("unknown", ""))
            return cls(**found, unknown=unknown)
        except (ValueError, TypeError, AttributeError, EOFError) as error:
            name = file if isinstance(file, str | Path) else "these bytes"
            raise ValueError(f"{name} has no attention maps: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> Maps:
        return cls.load(io.BytesIO(data))
