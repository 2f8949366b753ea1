"""The requests that every family answers, and how an engine answers them.

Run as a program, it answers the short ones on Model Runner V2, in Triton's interpreter; with
the argument TRITON_ATTN through that backend and our kernel, as on a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints.families import FAMILIES, Family
from checkpoints.images import KINDS, SIZES, make_image
from PIL import Image

from adaptvis_vllm import AdaptVis, Candidates, ScalingVis, SteeringParams
from adaptvis_vllm.reference.inputs import Video
from support.maps_parity import as_text, mapped


@dataclass(frozen=True)
class Case:
    """parts: of the prompt, in order: texts, images, videos."""

    parts: tuple[Any, ...]
    steering: SteeringParams | None
    max_tokens: int = 8
    v2: bool = False  # answered by Model Runner V2 too

    @property
    def images(self) -> list[Image.Image]:
        return [p for p in self.parts if isinstance(p, Image.Image)]

    @property
    def videos(self) -> list[Video]:
        return [p for p in self.parts if isinstance(p, tuple)]

    def text(self, family: Family) -> str:
        """The raw prompt, with the family's placeholders."""
        placeholders = {Image.Image: family.image, tuple: family.video}
        texts = []
        for part in self.parts:
            kinds = (p for kind, p in placeholders.items() if isinstance(part, kind))
            texts.append(next(kinds, part))
        return "".join(texts)


def make_cases(family: Family) -> list[Case]:
    """At least 8: pictures that make few and many tiles, text between them, alpha on both
    sides of 1, both branches of adaptive steering; half of them with maps."""
    small, wide, tall = make_image(0), make_image(18), make_image(11)
    one = ("USER: ", small, "\nWhere is the red cat? ASSISTANT:")
    tiles = ("USER: ", wide, "\nWhat is left of the table? ASSISTANT:")
    two = ("USER: ", tall, "\nand then ", small, "\nWhich is brighter? ASSISTANT:")
    many = ("USER: ", small, wide, "\nCompare. ASSISTANT:")
    word = family.image + family.video
    typed = ("USER: ", small, f"\nIs the text {word} in it, or{word}? ASSISTANT:")
    cases = [
        Case(one, None),
        Case(one, ScalingVis(0.3)),
        Case(one, mapped(ScalingVis(3))),
        Case(tiles, ScalingVis(2.5)),
        Case(tiles, mapped(AdaptVis(0.4, 2.5, 0.3), tokens=2)),
        Case(two, mapped(ScalingVis(0.4, layers="1,3"), "0-2")),
        Case(two, ScalingVis(2.5, span="interval")),
        Case(two, mapped(AdaptVis(0.4, 2.5, 0.0, confidence="entropy"))),
        Case(many, mapped(AdaptVis(0.4, 2.5, 1.0, confidence="margin"))),
        Case(many, ScalingVis(2.5)),
        Case(typed, mapped(AdaptVis(0.4, 2.5, 0.3), "1,3", tokens=9)),
        Case(one, mapped(ScalingVis(2.5), tokens=1), max_tokens=2, v2=True),
        Case(two, mapped(AdaptVis(0.3, 3.0, 0.5)), max_tokens=2, v2=True),
    ]
    if family.video:
        mixed = ("USER: ", small, "\nand ", make_video(3), "\nWhich is brighter? ASSISTANT:")
        spans = ("image", "video", "all", "interval")
        cases += [Case(mixed, mapped(ScalingVis(2.5, span=span))) for span in spans]
        cases += [Case(mixed, None), Case(mixed, AdaptVis(0.4, 2.5, 0.3, span="video"))]
    return cases


def candidates(family: Family) -> Case:
    """One more on either runner: three rows beside the batch, of which none is taken."""
    parts = ("USER: ", make_image(0), "\nWhere is the red cat? ASSISTANT:")
    return Case(parts, mapped(Candidates((2.5, 0.4, 1.0))), max_tokens=2)


def make_video(seed: int, frames: int = 4) -> Video:
    """Frames of one size with the metadata that vLLM's decoders give.

    One a second: in Qwen2.5-VL its positions reach further in time than in height and width.
    """
    images = [make_image(seed + len(KINDS) * len(SIZES) * i) for i in range(frames)]
    metadata = {
        "fps": 1.0,
        "duration": float(frames),
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
    }
    return np.stack([np.asarray(image) for image in images]), metadata


def answer(model: Path, family: Family, cases: Sequence[Case]) -> dict[str, Any]:
    """What an in-process engine says to the cases, as JSON.

    layers: kinds of attention among the decoder layers that are steered, with their number.
    sides: how far side rows are from the row they copy, by what a prompt ends in.
    answers: per case prompt_token_ids, positions (image positions), token_ids, logprobs
    (those of the first token), adaptvis (the report), maps (as text, or None).
    """
    from adaptvis_vllm.engine.runner.check import measure
    from support.engine import (
        close,
        generate,
        inspect_models_here,
        make_llm,
        runner,
        sampling,
        worker,
    )

    options = {
        "max_model_len": 1024,
        "max_num_batched_tokens": 64,
        "limit_mm_per_prompt": {"image": 2, "video": int(bool(family.video))},
        "additional_config": {"adaptvis": {"max_candidates": 3}},
    }
    inspect_models_here()
    llm = make_llm(model, **(options | dict(family.engine)))
    try:
        with _seen_positions(llm) as positions:
            outputs = generate(
                llm,
                [_prompt(case, family) for case in cases],
                [sampling(c.steering, max_tokens=c.max_tokens, logprobs=20) for c in cases],
            )
        layers, sides = _layer_kinds(runner(llm)), measure(worker(llm))
    finally:
        close(llm)
    answers = []
    for output in outputs:
        first = output.outputs[0].logprobs[0]
        answers.append(
            {
                "prompt_token_ids": output.prompt_token_ids,
                "positions": positions[output.request_id],
                "token_ids": list(output.outputs[0].token_ids),
                "logprobs": {str(token): entry.logprob for token, entry in first.items()},
                "adaptvis": output.adaptvis,
                "maps": as_text(output.adaptvis_maps),
            }
        )
    return {"layers": layers, "sides": sides, "answers": answers}


def _prompt(case: Case, family: Family) -> dict[str, Any]:
    media: dict[str, Any] = {"image": case.images, "video": case.videos}
    media = {modality: items for modality, items in media.items() if items}
    return {"prompt": case.text(family), "multi_modal_data": media}


@contextmanager
def _seen_positions(llm: Any) -> Iterator[dict[str, list[int]]]:
    """Image positions that the engine core knows of, by request."""
    from adaptvis_vllm.steering.span import image_positions
    from support.engine import scheduler

    sched, seen = scheduler(llm), {}
    original = sched.add_request

    def add_request(request: Any) -> None:
        positions = image_positions(request.mm_features, "embeddings")
        seen[request.request_id.partition("-")[0]] = positions.tolist()
        original(request)

    sched.add_request = add_request
    try:
        yield seen
    finally:
        del sched.add_request


def _layer_kinds(model_runner: Any) -> dict[str, int]:
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention import Attention

    layers = get_layers_from_vllm_config(model_runner.vllm_config, Attention)
    kinds: dict[str, int] = {}
    for layer in layers.values():
        if hasattr(layer.impl.forward, "adaptvis_base"):
            words = ["window"] if layer.sliding_window else ["full"]
            words += ["soft cap"] if layer.impl.logits_soft_cap else []
            words += ["sinks"] if layer.impl.sinks is not None else []
            kind = ", ".join(words)
            kinds[kind] = kinds.get(kind, 0) + 1
    assert sum(kinds.values()) == len(model_runner.adaptvis.layers)
    return kinds


def main(out: Path, models: dict[str, str]) -> None:
    """models: family -> checkpoint. Writes {family: answers of the V2 cases} to out."""
    results = {}
    for name, path in models.items():
        family = FAMILIES[name]
        cases = [*(case for case in make_cases(family) if case.v2), candidates(family)]
        results[name] = answer(Path(path), family, cases)
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    from adaptvis_vllm import _torchvision
    from adaptvis_vllm.engine.runner import interpreted

    _torchvision.ensure()
    interpreted.enable()
    if sys.argv[3:] == ["TRITON_ATTN"]:
        from support.triton_stack import use_triton_attention

        use_triton_attention()
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
