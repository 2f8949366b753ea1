"""Attention maps in the front end: where image positions lie, and pieces put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adaptvis_vllm.geometry.locate import locate, sizes
from adaptvis_vllm.geometry.model import UnknownGeometry
from adaptvis_vllm.maps.maps import Maps
from adaptvis_vllm.steering.params import PREFIX, SteeringParams, positions_of
from adaptvis_vllm.steering.words import BadParameter

CARRIER = "adaptvis_maps"  # the key of pieces in vLLM's kv_transfer_params, of maps in responses
MEDIA = "adaptvis_media"  # of a rendered prompt: its pictures as they were given
_REST = 2  # shares beside those of the positions, see `Maps`
_KINDS = ("image", "video")


@dataclass
class Collected:
    """The maps of one request on their way: what `Maps` has, and pieces as `StepPlan.maps` made
    them, in order.

    places: `geometry.locate.Geometry`, or why it is not known.
    """

    params: SteeringParams
    layers: Sequence[int]
    positions: np.ndarray
    places: Any
    sizes: np.ndarray
    image: np.ndarray
    pieces: list[bytes] = field(default_factory=list)

    def maps(self) -> Maps | None:
        """All that arrived; None if nothing did."""
        if not self.pieces:
            return None
        width = len(self.positions) + _REST

        def rows(piece: bytes, count: int) -> np.ndarray:
            """[count, L, H, P + 2]"""
            values = np.frombuffer(piece, np.float16)
            return values.reshape(count, len(self.layers), -1, width)

        prompt = rows(self.pieces[0], 2 if self.params.steers else 1)
        tokens = None
        if self.params.maps_tokens:
            later = [rows(piece, 1) for piece in self.pieces[1:]]
            tokens = np.concatenate([prompt[:0], *later])
        frame = np.full(len(self.positions), -1, np.int32)
        boxes = np.full((len(self.positions), 4), np.nan, np.float32)
        unknown = self.places if isinstance(self.places, str) else ""
        if not unknown:
            line = np.searchsorted(self.places.positions, self.positions)
            line = np.minimum(line, len(self.places.positions) - 1)
            found = self.places.positions[line] == self.positions
            frame[found] = self.places.frame[line[found]]
            boxes[found] = self.places.boxes[line[found]]
        return Maps(
            layers=np.array(self.layers, np.int32),
            positions=self.positions,
            image=self.image,
            frame=frame,
            boxes=boxes,
            sizes=self.sizes,
            before=prompt[0, ..., :-_REST],
            rest_before=prompt[0, ..., -_REST:],
            after=prompt[1, ..., :-_REST] if len(prompt) > 1 else None,
            rest_after=prompt[1, ..., -_REST:] if len(prompt) > 1 else None,
            tokens=None if tokens is None else tokens[..., :-_REST],
            rest_tokens=None if tokens is None else tokens[..., -_REST:],
            unknown=unknown,
        )


def keep_media(inputs: Any, mm_data: Any, arguments: Mapping[str, Any] | None) -> Any:
    """inputs: what `BaseRenderer._process_multimodal` returns; the pictures go with them as far as
    `process_inputs`."""
    inputs[MEDIA] = mm_data, arguments
    return inputs


def expect(
    request: Any,
    params: SteeringParams,
    *,
    num_layers: int,
    num_heads: int,
    max_bytes: int,
    places_of: Callable[[], tuple[Any, list[tuple[int, int]]]],
) -> None:
    """Prepare a vLLM `EngineCoreRequest` that asks for maps; BadParameter if they were too large.

    num_heads: query heads of all ranks. places_of: returns what the function of that name does.
    `Collected` travels on the first feature, which stays in this process.
    """
    features = request.mm_features or []
    positions = positions_of(request.sampling_params, features).astype(np.int32)
    if not len(positions):
        return
    layers = params.map_layers(num_layers)
    rows = (2 if params.steers else 1) + min(
        params.maps_tokens, request.sampling_params.max_tokens - 1
    )
    size = rows * len(layers) * num_heads * (len(positions) + _REST) * np.dtype(np.float16).itemsize
    if size > max_bytes:
        raise BadParameter(
            f"{PREFIX}maps of {len(layers)} layers, {rows} rows, {num_heads} heads and "
            f"{len(positions)} image positions are {size} bytes, more than the {max_bytes} that "
            "the engine allows (max_map_bytes, --max-map-bytes): ask for fewer layers",
            "maps",
        )
    places, known = places_of()
    shown = [f for f in features if f.modality in _KINDS]
    image = np.zeros(len(positions), np.int32)
    for number, feature in enumerate(sorted(shown, key=lambda f: f.mm_position.offset)):
        image[positions >= feature.mm_position.offset] = number
    pictures = np.zeros((len(shown), 2), np.int32)
    if known:
        pictures[:] = known
    features[0].adaptvis_maps = Collected(params, layers, positions, places, pictures, image)


def places_of(
    prompt: Any, features: Sequence[Any], processor: Callable[[], Any]
) -> tuple[Any, list[tuple[int, int]]]:
    """Geometry, or why it is not known; and each picture's width and height, if they are.

    prompt: what the renderer made. processor: returns vLLM's multimodal processor.
    """
    if not isinstance(prompt, dict) or MEDIA not in prompt:
        return "the prompt came to the engine without its pictures", []
    mm_data, arguments = prompt[MEDIA]
    info = processor().info
    pictures: list[tuple[int, int]] = []
    try:
        found = sizes(info.parse_mm_data(mm_data))
        seen = {kind: iter(group) for kind, group in found.items()}
        for feature in sorted(features, key=lambda f: f.mm_position.offset):
            if feature.modality in _KINDS:
                size = next(seen[feature.modality])
                pictures.append((size.width, size.height))
        return locate(info, features, found, arguments), pictures
    except UnknownGeometry as error:
        return str(error), pictures


def collected(request: Any) -> Collected | None:
    """What `expect` prepared. n > 1: each choice has pieces of its own."""
    features = request.mm_features
    held = getattr(features[0], "adaptvis_maps", None) if features else None
    return None if held is None else replace(held, pieces=[])
