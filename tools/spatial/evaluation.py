"""Accuracy of a checkpoint on the splits, for several alphas at inference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from spatial.batches import encode
from spatial.model import load
from spatial.splits import SPLITS, read_split
from spatial.steering import Steered

ALPHAS = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
AROUND = (0.25, 0.5, 1.0, 2.0)  # times the alpha of training
BATCH = 50


@torch.inference_mode()
def correct(
    model: Any,
    processor: Any,
    rows: Sequence[dict[str, Any]],
    alphas: Sequence[float],
    device: str = "cpu",
) -> dict[float, torch.Tensor]:
    """By alpha, [len(rows)] bool: the answer's token is the best, then the end of text.

    `model` must be fp32 and not yet steered.
    """
    model.to(device).eval()
    steered = Steered(model)
    eos = processor.tokenizer.eos_token_id
    found: dict[float, list[torch.Tensor]] = {alpha: [] for alpha in alphas}
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        batch = encode(
            processor,
            [Image.open(r["image"]).convert("RGB") for r in part],
            [[r["question"]] for r in part],
            [[r["answer"]] for r in part],
        )
        batch = {k: v.to(device) for k, v in batch.items()}
        for alpha in alphas:
            first, second, _ = steered(batch, alpha)
            right = (first.argmax(-1) == batch["answers"]) & (second.argmax(-1) == eos)
            found[alpha].append(right[:, 0].cpu())
    return {alpha: torch.cat(parts) for alpha, parts in found.items()}


def evaluate(
    path: Path, data: Path, alphas: Sequence[float] = ALPHAS, device: str = "cpu"
) -> dict[str, dict[str, Any]]:
    """By split: the number of questions, accuracy by alpha, and at alpha 1 and the training
    alpha by whether the relation is a familiar one of its pair."""
    model, processor = load(path)
    trained = float(model.config.training_alpha)
    alphas = sorted({*alphas, 1.0, *(trained * factor for factor in AROUND)})
    report = {}
    for split in SPLITS:
        rows = read_split(data, split)
        right = correct(model, processor, rows, alphas, device)
        familiar = torch.tensor([row["familiar"] for row in rows])
        report[split] = {
            "questions": len(rows),
            "accuracy": {str(a): _mean(right[a]) for a in alphas},
            "familiar": {str(a): _mean(right[a][familiar]) for a in sorted({1.0, trained})},
            "unfamiliar": {str(a): _mean(right[a][~familiar]) for a in sorted({1.0, trained})},
        }
    return report


def table(report: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line per split, a column per alpha, in percent."""
    alphas = list(next(iter(report.values()))["accuracy"])
    lines = ["| split | " + " | ".join(f"alpha {float(a):g}" for a in alphas) + " |"]
    lines.append("| --- |" + " ---: |" * len(alphas))
    for split, result in report.items():
        cells = [f"{100 * result['accuracy'][a]:.1f}" for a in alphas]
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: torch.Tensor) -> float:
    return round(values.float().mean().item(), 4)
