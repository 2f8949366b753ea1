"""The tiny checkpoints and pictures: whole, deterministic, and as different as tests need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.families import FAMILIES
from checkpoints.images import KINDS, SIZES, make_image, make_images
from checkpoints.llava import make_llava
from checkpoints.llava_variants import make_pixtral
from checkpoints.tokenizer import make_tokenizer, unwritable
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from adaptvis_vllm import ScalingVis
from adaptvis_vllm.reference.model import ReferenceModel


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if not f.refused])
def test_a_checkpoint_loads_whole_and_can_be_steered(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    path = family.make(tmp_path / "model")
    auto: Any = AutoModelForImageTextToText
    _, info = auto.from_pretrained(path, output_loading_info=True)
    assert not any(info.values())
    reference = ReferenceModel(path)
    prompt = f"USER: {family.image}\nand {family.image}\nWhich one? ASSISTANT:"
    plain = reference.generate(prompt, make_images(2), ignore_eos=True)
    one = reference.generate(prompt, make_images(2), ScalingVis(1), ignore_eos=True)
    assert (one.token_ids, one.logprobs) == (plain.token_ids, plain.logprobs)
    three = reference.generate(prompt, make_images(2), ScalingVis(3), ignore_eos=True)
    assert three.logprobs != plain.logprobs


def test_separators_are_no_image_positions(tmp_path: Path) -> None:
    reference = ReferenceModel(make_pixtral(tmp_path / "model"))
    answer = reference.generate("USER: [IMG]\nWhat? ASSISTANT:", make_images(1), max_tokens=1)
    first, last = answer.image_positions[0], answer.image_positions[-1]
    inside = answer.prompt_token_ids[first : last + 2]
    names = reference.tokenizer.convert_ids_to_tokens(inside)
    assert set(names) == {"[IMG]", "[IMG_BREAK]", "[IMG_END]"}
    assert names.count("[IMG]") == len(answer.image_positions)


def test_a_checkpoint_is_deterministic(tmp_path: Path) -> None:
    a, b, c = (
        load_file(make_llava(tmp_path / str(i), seed=seed) / "model.safetensors")
        for i, seed in enumerate([0, 0, 1])
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    for file in ("tokenizer.json", "config.json", "processor_config.json"):
        assert (tmp_path / "0" / file).read_text() == (tmp_path / "1" / file).read_text()


def test_dtype(tmp_path: Path) -> None:
    path = make_llava(tmp_path / "model", dtype=torch.bfloat16, kv_heads=4)
    assert {t.dtype for t in load_file(path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_tokenizer_writes_anything() -> None:
    tokenizer = make_tokenizer(512, ("<image>",))
    text = 'USER: {"answer": "left", "ünïcode": [1, 2]}\n\tÀ 猫'
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer("a <image> b")["input_ids"].count(3) == 1
    never = unwritable(tokenizer)
    assert {0, 1, 3} <= set(never)
    assert 2 not in never


def test_pictures() -> None:
    pictures = make_images(len(KINDS) * len(SIZES))
    assert {p.size for p in pictures} == set(SIZES)
    assert {p.mode for p in pictures} == {"RGB"}
    assert len({p.tobytes() for p in pictures}) == len(pictures)
    assert make_image(7).tobytes() == pictures[7].tobytes()
