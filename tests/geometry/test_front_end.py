"""What `locate` asks for is at hand in the front end of a running engine."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoints.images import make_image
from support.engine import generate, sampling

from adaptvis_vllm.geometry.locate import Geometry, locate, sizes
from adaptvis_vllm.steering.span import image_positions


def test_a_request_of_an_engine(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: the second time vLLM's cache knows the pictures."""
    front_end, renderer = engine.llm_engine.input_processor, engine.llm_engine.renderer
    original, seen = front_end.process_inputs, []

    def process_inputs(*args: Any, **kwargs: Any) -> Any:
        request = original(*args, **kwargs)
        info = renderer.get_mm_processor().info
        found = locate(info, request.mm_features, sizes(info.parse_mm_data(media)))
        seen.append((found, image_positions(request.mm_features, "embeddings"), request))
        return request

    monkeypatch.setattr(front_end, "process_inputs", process_inputs)
    pictures = [make_image(18), make_image(11)]
    media = {"image": pictures}
    prompt = {"prompt": "USER: <image>\nand <image>\nWhich?", "multi_modal_data": media}
    for _ in range(2):
        (output,) = generate(engine, [prompt], sampling(max_tokens=1))
        found, positions, request = seen[-1]
        assert isinstance(found, Geometry)
        assert found.positions.tolist() == positions.tolist()
        assert output.prompt_token_ids == request.prompt_token_ids
        token = engine.get_tokenizer().convert_tokens_to_ids("<image>")
        assert {output.prompt_token_ids[p] for p in found.positions} == {token}
        for number, picture in enumerate(pictures):
            ends = found.boxes[found.image == number][:, 2:].max(0)
            middle = found.boxes[found.image == number][:, :2].min(0) + ends
            assert middle.tolist() == pytest.approx(picture.size, abs=4)
    assert len(seen) == 2
