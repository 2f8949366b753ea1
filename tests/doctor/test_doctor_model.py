"""`adaptvis doctor --model`: positions and layers of a model, or why it cannot be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints.families import FAMILIES
from checkpoints.images import make_image
from support.commands import here
from support.engine import inspect_models_here
from transformers import AutoTokenizer, LlamaConfig

from adaptvis_vllm.doctor import model as doctor_model
from adaptvis_vllm.doctor.drawing import draw, ranges
from adaptvis_vllm.doctor.model import QUESTION


def doctor(
    path: Path, picture: Path | None = None, trial: bool = False, **options: Any
) -> tuple[str, bool]:
    """trial: in an engine too, which takes seconds."""
    from vllm.engine.arg_utils import EngineArgs

    inspect_models_here()
    with pytest.MonkeyPatch.context() as patch:
        if not trial:
            patch.setattr(doctor_model, "differences", lambda _: {"text": 0.0})
        return doctor_model.report(EngineArgs(str(path), dtype="float32", **options), picture)


def test_positions_and_layers(model: Path, tmp_path: Path) -> None:
    """No weights are read: there are none. The picture's size counts where tiles depend on it."""
    (model / "model.safetensors").rename(tmp_path / "weights")
    try:
        text, works = doctor(model, trial=True)
    finally:
        (tmp_path / "weights").rename(model / "model.safetensors")
    assert works
    assert "LlavaForConditionalGeneration" in text
    assert "backend         CPU_ATTN" in text
    assert "layers          0-3: full attention" in text
    assert "side rows       as the row they copy (first layers, random weights)" in text
    assert "16 of an image: 4-19" in text
    assert "<s>USER: [<image> x 16]\\n" + QUESTION + " ASSISTANT:" in text


def test_side_rows_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first layers, where Qwen3-VL adds features of the image by row number."""
    from adaptvis_vllm.engine import steps

    path = FAMILIES["qwen3-vl"].make(tmp_path / "model")
    text, works = doctor(path, trial=True)
    assert works, text
    monkeypatch.setattr(steps, "MODEL_ROWS", ())
    text, works = doctor(path, trial=True)
    assert not works
    assert "where a prompt ends in an image; at most 0.001" in text.splitlines()[-1]


def test_the_picture_of_the_sample_prompt(tmp_path: Path) -> None:
    path = FAMILIES["qwen2.5-vl"].make(tmp_path / "model")
    make_image(0).resize((56, 112)).save(tmp_path / "tall.png")
    text, works = doctor(path, tmp_path / "tall.png")
    assert works
    assert "a picture of 56 x 112" in text
    assert "[<|image_pad|> x 8]<|vision_end|>" in text


def test_separators_are_drawn_outside(tmp_path: Path) -> None:
    text, works = doctor(FAMILIES["pixtral"].make(tmp_path / "model"))
    assert works
    assert "[[IMG] x 6][IMG_BREAK][[IMG] x 6][IMG_BREAK]" in text.replace("\n    ", "")


def test_windows_are_told_apart(tmp_path: Path) -> None:
    text, works = doctor(FAMILIES["gemma3"].make(tmp_path / "model"))
    assert works
    assert "full attention" in text
    assert "window" in text


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.refused])
def test_refused_families(tmp_path: Path, name: str) -> None:
    """The sentence that start-up refuses them with."""
    family = FAMILIES[name]
    text, works = doctor(family.make(tmp_path / "model"), **family.engine)
    assert not works
    assert text.splitlines()[-1].startswith("it CANNOT be steered: ")
    assert family.refused in text


def test_models_that_vllm_does_not_serve(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    text, works = doctor(path)
    assert not works
    assert "vLLM does not serve it: " in text


def test_text_models(tmp_path: Path) -> None:
    path = tmp_path / "model"
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(path)
    text, works = doctor(path, skip_tokenizer_init=True)
    assert not works
    assert "its prompts hold no images" in text


def test_engine_options_count(model: Path) -> None:
    text, works = doctor(model, kv_cache_dtype="fp8")
    assert not works
    assert "kv_cache_dtype fp8" in text


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/models.md has its output."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    done = here("doctor", "--model", "models/spatial-llava", "--max-model-len", "256")
    assert done.returncode == 0, done.stderr
    assert f"```\n{done.stdout}```\n" in (root / "docs" / "models.md").read_text(encoding="utf-8")


def test_many_runs_are_shortened(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert ranges([]) == ""
    assert ranges([4, 5, 6, 9, 11, 12]) == "4-6, 9, 11-12"
    assert ranges(range(0, 40, 2)) == "0, 2, 4, ... 16 more ..., 38"
    tokens = [image, image, 1] * 20 + [2]
    positions = [i for i, token in enumerate(tokens) if token == image]
    assert draw(tokens, positions, tokenizer) == [
        "    " + "[<image> x 2]<s>" * 3 + " ... 16 more ... [<image> x 2]<s></s>"
    ]
