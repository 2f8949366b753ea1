"""A LoRA adapter on the language model: steered answers are those of the merged weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engine import close, make_llm, prompt, sampling
from support.lora_v2 import STEERINGS as V2_STEERINGS
from support.lora_v2 import TOKENS

from adaptvis_vllm import AdaptVis, Candidates, ScalingVis
from adaptvis_vllm.engine import plan, steps
from adaptvis_vllm.reference.model import ReferenceModel

RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEERINGS = [None, ScalingVis(0.3), ScalingVis(3), AdaptVis(0.4, 2.5, 0.4)]
STEERINGS.append(Candidates((2.5, 0.4)))


def make_adapter(model: Path, adapter: Path, merged: Path) -> None:
    """Write a random adapter in PEFT's format, and the checkpoint with its weights added."""
    shutil.copytree(model, merged)
    weights = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, weight in weights.items():
        layer, _, leaf = name.removesuffix(".weight").rpartition(".")
        if "language_model" not in layer or leaf not in TARGETS:
            continue
        out, width = weight.shape
        a = torch.randn(RANK, width, generator=generator) / width**0.5
        b = torch.randn(out, RANK, generator=generator) / RANK**0.5 / 2
        tensors[f"base_model.model.{layer}.{leaf}.lora_A.weight"] = a
        tensors[f"base_model.model.{layer}.{leaf}.lora_B.weight"] = b
        weights[name] = weight + b @ a * ALPHA / RANK
    assert tensors
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def test_answers_of_the_merged_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the adapter, then without it on the same engine and the same prefix cache. Logits of
    candidates are computed one by one.

    Not in one batch: vLLM's CPU kernels give the adapter to its other requests too.
    """
    from vllm.lora.request import LoRARequest

    for module in (plan, steps):
        monkeypatch.setattr(module, "HEAD_ROWS", 1)
    make_adapter(model, tmp_path / "adapter", tmp_path / "merged")
    lora = LoRARequest("tiny", 1, str(tmp_path / "adapter"))
    requests = [(prompt(i), steering) for i in range(2) for steering in STEERINGS]
    items, params = zip(*((p, sampling(s, logprobs=5)) for p, s in requests), strict=True)
    llm = make_llm(model, enable_lora=True, max_lora_rank=RANK, max_num_batched_tokens=64)
    try:
        adapted, plain = (
            llm.generate(items, params, lora_request=use, use_tqdm=False) for use in (lora, None)
        )
    finally:
        close(llm)
    for outputs, folder in ((adapted, tmp_path / "merged"), (plain, model)):
        reference = ReferenceModel(folder)
        for (given, steering), output in zip(requests, outputs, strict=True):
            expected = reference.generate(
                given["prompt"], [given["multi_modal_data"]["image"]], steering, max_tokens=8
            )
            answer = output.outputs[0]
            assert list(answer.token_ids) == expected.token_ids
            first = answer.logprobs[0][answer.token_ids[0]].logprob
            assert first == pytest.approx(expected.logprobs[0], abs=1e-4)
            wanted = expected.report.candidates or ()
            found = (output.adaptvis or {}).get("candidates", ())
            for one, other in zip(found, wanted, strict=True):
                assert one["token_id"] == other["token_id"]
                assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)
    answers = [tuple(output.outputs[0].token_ids) for output in adapted + plain]
    assert len(set(answers)) > len(answers) / 2


def test_model_runner_v2(model: Path, tmp_path: Path) -> None:
    """Side rows are tokens of their request's adapter there too."""
    make_adapter(model, tmp_path / "adapter", tmp_path / "merged")
    program = Path(__file__).parents[1] / "support" / "lora_v2.py"
    done = subprocess.run(
        [sys.executable, "-P", program, model, tmp_path / "adapter", str(RANK)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reference = ReferenceModel(tmp_path / "merged")
    answers = json.loads(done.stdout.splitlines()[-1])
    for steering, (tokens, logprob, found) in zip(V2_STEERINGS, answers, strict=True):
        given = prompt(0)
        expected = reference.generate(
            given["prompt"], [given["multi_modal_data"]["image"]], steering, max_tokens=TOKENS
        )
        assert tokens == expected.token_ids
        assert logprob == pytest.approx(expected.logprobs[0], abs=1e-4)
        assert found == [one["token_id"] for one in expected.report.candidates or ()]
