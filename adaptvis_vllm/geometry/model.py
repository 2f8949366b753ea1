"""What vLLM's front end knows of a model's pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from adaptvis_vllm.geometry.views import Size


class UnknownGeometry(ValueError):
    """Where image positions lie cannot be said, with the reason as a sentence."""


class Model:
    """info: vLLM's `BaseProcessingInfo` of the model, its `renderer.get_mm_processor().info`.

    arguments: the request's `mm_processor_kwargs`.
    """

    def __init__(self, info: Any, arguments: Mapping[str, Any] | None = None) -> None:
        self.info = info
        self.arguments = dict(arguments or {})

    @property
    def architecture(self) -> str:
        return self.info.ctx.model_config.architecture

    @property
    def config(self) -> Any:
        """Of transformers, the whole model's."""
        return self.info.ctx.get_hf_config()

    @property
    def vision(self) -> Any:
        return self.config.vision_config

    @cached_property
    def processor(self) -> Any:
        return self.info.get_hf_processor(**self.arguments)

    @cached_property
    def _image_arguments(self) -> Mapping[str, Any]:
        """What the image processor is called with: the processor's own (InternVL's asks for
        tiles, whatever the image processor's file says), the engine's, the request's."""
        merged = self.info._merge_and_resolve_mm_processor_kwargs(self.arguments)
        known = getattr(self.processor, "valid_processor_kwargs", None)
        defaults = getattr(known, "_defaults", {})
        return {**defaults.get("images_kwargs", {}), **merged, **merged.get("images_kwargs", {})}

    def option(self, name: str) -> Any:
        """Of the image processor, as this request has it; None where it has none."""
        default = getattr(self.processor.image_processor, name, None)
        return self._image_arguments.get(name, default)

    def edges(self, name: str = "size") -> dict[str, int]:
        """A size of the image processor, without the edges that are not given."""
        given = self.option(name) or {}
        return {k: v for k, v in dict(given).items() if v is not None}

    @cached_property
    def square(self) -> int:
        """Width and height in pixels of what the vision tower sees at a time."""
        return _only(self.vision.image_size, "the vision tower sees {}, not a square")

    @cached_property
    def patch(self) -> int:
        """Width and height in pixels of a patch."""
        return _only(self.vision.patch_size, "patches of {} are not square")

    def check_stretched(self, name: str = "size") -> None:
        """Pictures, or tiles of them, must be stretched to what the vision tower sees."""
        edges = self.edges(name)
        sides = {edges.get("height"), edges.get("width")}
        if not self.option("do_resize") or sides != {self.square}:
            raise self.unlike(f"the image processor's {name} is {edges}")

    def unlike(self, made: str) -> UnknownGeometry:
        """The error where a processor makes other pictures than the vision tower sees."""
        return UnknownGeometry(f"{made}, and the vision tower sees {self.square} x {self.square}")


def _only(sides: Any, other: str) -> int:
    """The one length of a width and a height; else UnknownGeometry, which says `other`."""
    both = {sides} if isinstance(sides, int) else set(sides)
    if len(both) > 1:
        raise UnknownGeometry(other.format(sides))
    return both.pop()


def shortest_to(size: Size, edge: int) -> tuple[int, int]:
    """Width and height after the shortest edge has become `edge`, in the same proportion."""
    from transformers.image_transforms import get_resize_output_image_size
    from transformers.image_utils import ChannelDimension

    height, width = get_resize_output_image_size(
        size.like(),
        size=edge,
        default_to_square=False,
        input_data_format=ChannelDimension.FIRST,
    )
    return width, height
