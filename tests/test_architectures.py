"""Steered answers of the engine are the reference's, beyond LLaVA-1.5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from engine import close, generate, make_llm, sampling
from models.images import make_image
from models.llava_variants import make_llava_next, make_pixtral
from models.qwen2_5_vl import make_qwen2_5_vl

from adaptvis_vllm import AdaptVis, ScalingVis
from adaptvis_vllm.reference import ReferenceModel

STEERINGS = [
    None,
    ScalingVis(0.3),
    ScalingVis(3),
    ScalingVis(2.5, layers="1,3"),
    # Separators and text between images are inside the interval only.
    ScalingVis(2.5, span="interval"),
    AdaptVis(0.4, 2.5, 0.3),
    AdaptVis(0.4, 2.5, 0.3, confidence="margin"),
    AdaptVis(0.4, 2.5, 0.3, confidence="entropy", span="interval"),
]


@pytest.mark.parametrize(
    ("factory", "image"),
    [
        (make_llava_next, "<image>"),
        (make_pixtral, "[IMG]"),
        (make_qwen2_5_vl, "<|vision_start|><|image_pad|><|vision_end|>"),
    ],
    ids=["llava-next", "pixtral", "qwen2.5-vl"],
)
def test_parity(tmp_path: Path, factory: Callable[[Path], Path], image: str) -> None:
    model = factory(tmp_path / "model")
    cases = []
    for i, steering in enumerate(STEERINGS):
        one = f"USER: {image}\nWhat is in picture {i}? ASSISTANT:"
        two = f"USER: {image}\nand then {image}\nWhich is brighter? ASSISTANT:"
        cases.append((one, [make_image(i)], steering))
        cases.append((two, [make_image(i + 20), make_image(i + 7)], steering))
    llm = make_llm(
        model,
        max_model_len=1024,
        max_num_batched_tokens=64,
        limit_mm_per_prompt={"image": 2, "video": 0},
    )
    try:
        outputs = generate(
            llm,
            [{"prompt": p, "multi_modal_data": {"image": images}} for p, images, _ in cases],
            [sampling(steering, max_tokens=12, logprobs=5) for *_, steering in cases],
        )
    finally:
        close(llm)
    reference = ReferenceModel(model)
    changed = 0
    for (prompt, images, steering), output in zip(cases, outputs, strict=True):
        expected = reference.generate(prompt, images, steering, max_tokens=12)
        answer = output.outputs[0]
        assert list(answer.token_ids) == expected.token_ids
        first = answer.logprobs[0][answer.token_ids[0]].logprob
        assert first == pytest.approx(expected.logprobs[0], abs=1e-4)
        if steering:
            plain = reference.generate(prompt, images, max_tokens=12)
            changed += plain.token_ids != expected.token_ids
    assert changed > len(STEERINGS)
