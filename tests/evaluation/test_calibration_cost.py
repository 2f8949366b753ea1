"""What a sweep costs, on a model whose pictures take as many tokens as LLaVA-1.5's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from checkpoints.llava import make_llava
from support.calibration_cases import QUESTIONS, questions
from support.engine import close, counted_steps, make_llm

from adaptvis_vllm import Off
from adaptvis_vllm.evaluation.answers import answer
from adaptvis_vllm.evaluation.calibration.sweep import ALPHAS, sweep
from adaptvis_vllm.evaluation.datasets.scoring import contains


@pytest.fixture(scope="module")
def llava_shaped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """576 tokens an image, as LLaVA-1.5; the width does not matter to what is scheduled."""
    path = make_llava(tmp_path_factory.mktemp("models") / "wide", image_size=336, layers=2)
    llm = make_llm(path, max_model_len=1024, kv_cache_memory_bytes=256 * 2**20)
    yield llm
    close(llm)


def test_nine_alphas_cost_less_than_1_6_plain_runs(llava_shaped: Any) -> None:
    """Scheduled tokens, counted in the engine. ADAPTVIS_TEST_QUESTIONS=400 for the full size."""
    asked = questions(QUESTIONS)
    assert len(ALPHAS) == 9
    with counted_steps(llava_shaped) as steps:
        answer(llava_shaped, asked, [Off()], max_tokens=4)
    plain = sum(sum(step.values()) for step in steps)
    assert llava_shaped.reset_prefix_cache()
    with counted_steps(llava_shaped) as steps:
        swept = sweep(llava_shaped, asked, contains, max_tokens=4)
    whole = sum(sum(step.values()) for step in steps)
    print(f"{len(asked)} questions: {whole} tokens, {whole / plain:.3f} of {plain}")
    assert whole <= 1.6 * plain
    assert (swept.plain_tokens, swept.all_tokens) == (plain, whole)
