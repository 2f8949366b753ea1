"""Published accuracies, in percent: github.com/shiqichen17/AdaptVis, its project page's table."""

from __future__ import annotations

from adaptvis_vllm.evaluation.datasets.question import Published

_METHODS = ("base", "scaling", "adaptive")
_LLAVA_15 = {
    "controlled_a": (60.3, 64.5, 84.9),
    "controlled_b": (73.1, 75.2, 83.8),
    "coco_one": (53.0, 53.6, 53.6),
    "coco_two": (58.2, 59.4, 59.9),
    "vg_one": (35.9, 42.7, 42.7),
    "vg_two": (40.8, 48.1, 48.1),
    "vsr": (62.4, 64.9, 65.0),
}
_LLAVA_16 = {
    "controlled_a": (48.2, 97.0, 98.2),
    "controlled_b": (63.0, 73.4, 73.4),
    "coco_one": (59.7, 63.1, 63.1),
    "coco_two": (41.8, 47.7, 47.7),
    "vg_one": (31.6, 38.2, 35.2),
    "vg_two": (7.3, 14.6, 17.2),
    "vsr": (58.8, 59.1, 62.7),
}
_F1 = {"LLaVA-1.5": (51.3, 62.5, 62.5), "LLaVA-1.6": (29.4, 30.6, 39.3)}


def published(name: str) -> tuple[Published, ...]:
    """What is known of a benchmark; nothing for other names."""
    out = [
        Published(model, method, value)
        for model, table in (("LLaVA-1.5", _LLAVA_15), ("LLaVA-1.6", _LLAVA_16))
        for method, value in zip(_METHODS, table.get(name, ()), strict=False)
    ]
    if name == "vsr":
        out += [
            Published(model, method, value, "f1")
            for model, values in _F1.items()
            for method, value in zip(_METHODS, values, strict=True)
        ]
    return tuple(out)
