"""The small spatial LLaVAs: as accurate as their cards say."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageStat
from support.engine import close, make_llm, sampling

from adaptvis_vllm import ScalingVis
from adaptvis_vllm.reference.model import ReferenceModel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from spatial.batches import Questions, encode  # noqa: E402
from spatial.evaluation import correct  # noqa: E402
from spatial.model import load, make_model, make_processor, prompt_of, save  # noqa: E402
from spatial.scenes import training_scene, usual_relations  # noqa: E402
from spatial.splits import COUNT, SPLITS, boxes_of, read_split, split_scene  # noqa: E402
from spatial.steering import Steered  # noqa: E402
from spatial.training import Recipe, Run, control_recipe, train  # noqa: E402

DATA = ROOT / "data" / "spatial"
NORMAL = ROOT / "models" / "spatial-llava"
CONTROL = ROOT / "models" / "spatial-llava-control"


def training_alpha(path: Path) -> float:
    return json.loads((path / "config.json").read_text())["training_alpha"]


def accuracy(path: Path, split: str, *alphas: float, count: int = 120) -> list[float]:
    """Of the split's first questions, whose answers are equally often each relation."""
    rows = read_split(DATA, split)[:count]
    right = correct(*load(path), rows, alphas)
    return [right[alpha].float().mean().item() for alpha in alphas]


# The shipped splits


def test_the_splits_are_whole_and_balanced() -> None:
    for split in SPLITS:
        rows = read_split(DATA, split)
        assert len({row["id"] for row in rows}) == COUNT == 400
        assert set(Counter(row["answer"] for row in rows).values()) == {COUNT // 4}
        assert 0.4 < sum(row["familiar"] for row in rows) / COUNT < 0.6
        for row in rows:
            assert row["answer"] in row["choices"]
            assert row["image"].is_file()
    assert all(row["distractors"] == 0 for row in read_split(DATA, "plain"))
    assert all(row["distractors"] == 1 for row in read_split(DATA, "distractors"))
    assert {r["kind"] for r in read_split(DATA, "validation")} == {
        "plain",
        "distractors",
        "shifted",
    }


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_lie_as_the_answer_says(split: str) -> None:
    """In the picture, and the subject's middle left of, right of, above or below the other's."""
    axis = {"left": (0, -1), "right": (0, 1), "on": (1, -1), "under": (1, 1)}
    for row in read_split(DATA, split):
        assert len(row["boxes"]) == 2 + row["distractors"]
        size = Image.open(row["image"]).size
        middles = {}
        for name, box in row["boxes"].items():
            assert all(0 <= box[i] < box[i + 2] <= size[i] for i in (0, 1))
            middles[name] = [(box[i] + box[i + 2]) / 2 for i in (0, 1)]
        way, sign = axis[row["answer"]]
        assert sign * (middles[row["subject"]][way] - middles[row["reference"]][way]) > 0


@pytest.mark.parametrize("split", SPLITS)
def test_the_seed_gives_the_shipped_pictures(split: str) -> None:
    for number, row in enumerate(read_split(DATA, split)[:6]):
        scene = split_scene(split, number)
        assert (scene.question, scene.answer) == (row["question"], row["answer"])
        assert boxes_of(scene) == row["boxes"]
        assert scene.image.tobytes() == split_scene(split, number).image.tobytes()
        # Another version of Pillow may round an edge differently.
        difference = ImageChops.difference(scene.image, Image.open(row["image"]))
        assert max(ImageStat.Stat(difference).mean) < 0.5


def test_training_shows_usual_relations_more_often() -> None:
    scenes = [training_scene(0, "language", number) for number in range(600)]
    ranks = Counter(usual_relations(s.subject, s.reference).index(s.answer) for s in scenes)
    assert ranks[0] > ranks[1] > ranks[2] > ranks[3] > 0
    familiar = sum(scene.familiar for scene in scenes) / len(scenes)
    assert familiar == pytest.approx((ranks[0] + ranks[1]) / len(scenes))
    assert familiar > 0.75


# Training


def test_training_batches_follow_from_the_seed() -> None:
    processor = make_processor()
    a, b, c = (Questions(processor, seed, 9, 2, 0.5)[3] for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["pixels"], c["pixels"])


def test_questions_that_share_a_picture_are_scaled_as_the_reference_scales(
    tmp_path: Path,
) -> None:
    processor = make_processor()
    save(make_model(processor.tokenizer, 0), processor, tmp_path, 2.0)
    model, processor = load(tmp_path)
    reference = ReferenceModel(tmp_path)
    scenes = [training_scene(0, "language", number) for number in range(2)]
    questions = ["Where is the mug?", "Is the ball left or right of the old chair?", "And now?"]
    batch = encode(
        processor, [s.image for s in scenes], [questions] * 2, [["left", "on", "under"]] * 2
    )
    for alpha in (1.0, 2.0):
        with torch.inference_mode():
            first, _, _ = Steered(model)(batch, alpha)
        for scene, logits in zip(scenes, first.log_softmax(-1), strict=True):
            for question, row in zip(questions, logits, strict=True):
                answer = reference.generate(
                    prompt_of(question), [scene.image], ScalingVis(alpha), max_tokens=1
                )
                assert row[answer.token_ids[0]].item() == pytest.approx(
                    answer.logprobs[0], abs=1e-4
                )


def test_a_short_training_changes_and_saves_the_model(tmp_path: Path) -> None:
    processor = make_processor()
    model = make_model(processor.tokenizer, 0)
    said: list[str] = []
    recipe = Recipe(alpha=2.0, steps=4, vision_steps=2, batch=2, warmup=1)
    before = model.lm_head.weight.clone()
    train(model, processor, recipe, Run(say=said.append), tmp_path / "vision")
    assert [line.partition(":")[0] for line in said] == ["vision 2", "step 4"]
    assert (tmp_path / "vision").is_file()
    assert model.lm_head.weight.isfinite().all()
    assert not torch.equal(before, model.lm_head.weight)
    save(model, processor, tmp_path, recipe.alpha)
    assert load(tmp_path)[0].config.positive_control is True


def test_a_controls_queries_and_keys_stay_shrunk() -> None:
    model, processor = load(NORMAL)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    recipe = dataclasses.replace(control_recipe(4.0, 0), steps=2, batch=2)
    train(model, processor, recipe, Run(say=lambda line: None))
    layer = "model.language_model.layers.2.{}.weight".format
    now = dict(model.named_parameters())
    for name in (layer("self_attn.q_proj"), layer("self_attn.k_proj")):
        torch.testing.assert_close(now[name] * 32**0.5, before[name])
    assert torch.equal(now[layer("input_layernorm")], before[layer("input_layernorm")])
    assert not torch.equal(now[layer("self_attn.v_proj")], before[layer("self_attn.v_proj")])


# The shipped checkpoints


def test_they_are_small_and_named_for_what_they_are() -> None:
    files = [file for path in (NORMAL, CONTROL) for file in path.iterdir()]
    assert sum(file.stat().st_size for file in files) < 16e6
    assert training_alpha(NORMAL) == 1
    assert "no gain" in (NORMAL / "README.md").read_text()
    assert json.loads((CONTROL / "config.json").read_text())["positive_control"] is True
    assert "positive control, not a model of interest" in (CONTROL / "README.md").read_text()


def test_the_normal_model_is_accurate() -> None:
    assert accuracy(NORMAL, "plain", 1.0)[0] >= 0.97
    assert accuracy(NORMAL, "distractors", 1.0, count=200)[0] >= 0.88
    assert accuracy(NORMAL, "shifted", 1.0)[0] >= 0.4


def test_the_control_needs_the_alpha_of_its_training() -> None:
    alpha = training_alpha(CONTROL)
    assert accuracy(CONTROL, "plain", alpha)[0] >= 0.95
    steered, plain = accuracy(CONTROL, "distractors", alpha, 1.0)
    assert steered >= 0.85
    assert steered - plain >= 0.1


@pytest.mark.parametrize("path", [NORMAL, CONTROL], ids=lambda path: path.name)
def test_vllm_answers_as_transformers_does(path: Path) -> None:
    reference = ReferenceModel(path)
    rows = [row for split in SPLITS for row in read_split(DATA, split)[5:13]]
    steering = ScalingVis(2.0 if path == NORMAL else training_alpha(CONTROL))
    prompts: list[Any] = []
    for row in rows:
        image = Image.open(row["image"]).convert("RGB")
        prompts.append({"prompt": prompt_of(row["question"]), "multi_modal_data": {"image": image}})
    llm = make_llm(path)
    try:
        outputs = llm.generate(
            prompts, sampling(steering, max_tokens=4, logprobs=5), use_tqdm=False
        )
    finally:
        close(llm)
    for prompt, output in zip(prompts, outputs, strict=True):
        answer = output.outputs[0]
        expected = reference.generate(
            prompt["prompt"], [prompt["multi_modal_data"]["image"]], steering, max_tokens=4
        )
        assert list(answer.token_ids) == expected.token_ids
        assert answer.text == expected.text
        first = answer.logprobs[0][answer.token_ids[0]].logprob
        assert first == pytest.approx(expected.logprobs[0], abs=1e-4)


@pytest.mark.parametrize("path", [NORMAL, CONTROL], ids=lambda path: path.name)
def test_the_chat_template_writes_the_prompt(path: Path) -> None:
    processor = load(path)[1]
    question = "Where is the mug in relation to the table?"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<s>" + prompt_of(question)
