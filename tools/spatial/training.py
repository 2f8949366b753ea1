"""Training, the same on a CPU and on a GPU: first the vision tower alone, then everything."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from spatial.batches import Batch, Pictures, Questions
from spatial.scenes import NAMES
from spatial.steering import Steered

EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """alpha: factor of the last prompt rows' image logits in every layer, 1 for none.

    steps: of the whole model; vision_steps: of the vision tower alone, before. batch:
    pictures a step. blind: part of the questions whose rows before the last see no picture,
    so that the last row learns to look for itself. shrink: see `shrink`, 1 for none.
    """

    alpha: float = 1.0
    seed: int = 0
    steps: int = 1500
    rate: float = 1e-3
    vision_steps: int = 3000
    vision_rate: float = 3e-3
    batch: int = 32
    warmup: int = 100
    weight_decay: float = 0.05
    blind: float = 0.5
    shrink: float = 1.0


def control_recipe(alpha: float, seed: int) -> Recipe:
    """A trained model learns to need alpha."""
    return Recipe(alpha, seed, steps=400, rate=3e-4, vision_steps=0, warmup=20, shrink=32.0)


@dataclass(frozen=True)
class Run:
    """Where and how loudly; changes no result beyond rounding."""

    device: str = "cpu"
    workers: int = 0
    say: Callable[[str], Any] = print


def train(
    model: Any, processor: Any, recipe: Recipe, run: Run, vision: Path | None = None
) -> float:
    """Train in place; returns the seconds it took.

    vision: a file with the trained vision tower of the same recipe, used if it exists, else
    written; it depends neither on alpha nor on steps.
    """
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    if recipe.shrink != 1:
        shrink(model, recipe.shrink)
    # What each patch shows: teaches the vision tower, and is thrown away.
    head = nn.Linear(model.config.vision_config.hidden_size, 1 + len(NAMES))
    tower = nn.ModuleDict({"tower": model.model.vision_tower, "head": head})
    steered = Steered(model)
    model.to(run.device).train()
    tower.to(run.device)
    if vision is not None and vision.exists():
        tower.load_state_dict(load_file(vision))
    elif recipe.vision_steps:
        _train_vision(tower, processor, recipe, run)
        if vision is not None:
            vision.parent.mkdir(parents=True, exist_ok=True)
            save_file(tower.state_dict(), vision)
    _train_all(steered, head, processor, recipe, run)
    return time.perf_counter() - started


@torch.no_grad()
def shrink(model: Any, factor: float) -> None:
    """Divide the language model's attention logits by the factor, for good: queries, keys and
    the norms before them learn no more.

    Free to learn, they grow until attention is as sharp as the task wants it, and a model that
    was trained with some alpha does as well with half or twice of it.
    """
    for name, weight in model.model.language_model.named_parameters():
        projection = "q_proj" in name or "k_proj" in name
        if projection:
            weight /= math.sqrt(factor)
        if projection or "input_layernorm" in name:
            weight.requires_grad_(False)


def _train_vision(tower: nn.ModuleDict, processor: Any, recipe: Recipe, run: Run) -> None:
    data = Pictures(processor, recipe.seed, recipe.vision_steps, recipe.batch)
    weights = _Weights(tower, recipe, recipe.vision_rate, recipe.vision_steps)
    log = _Log(run, "vision", recipe.vision_steps)
    for batch in _batches(data, run):
        features = tower["tower"](batch["pixels"].bfloat16()).last_hidden_state[:, 1:]
        guess = tower["head"](features).float()
        loss = F.cross_entropy(guess.flatten(0, 1), batch["patches"].flatten())
        weights.step(loss)
        log.add(loss=loss, objects=_objects(guess, batch["patches"]))
    weights.finish()


def _train_all(steered: Steered, head: nn.Module, processor: Any, recipe: Recipe, run: Run) -> None:
    data = Questions(processor, recipe.seed, recipe.steps, recipe.batch, recipe.blind)
    weights = _Weights(nn.ModuleList([steered.model, head]), recipe, recipe.rate, recipe.steps)
    log = _Log(run, "step", recipe.steps)
    eos = processor.tokenizer.eos_token_id
    for batch in _batches(data, run):
        first, second, features = steered(batch, recipe.alpha)
        guess, answers = head(features).float(), batch["answers"]
        answer = F.cross_entropy(first.flatten(0, 1), answers.flatten())
        stop = F.cross_entropy(second.flatten(0, 1), torch.full_like(answers, eos).flatten())
        seen = F.cross_entropy(guess.flatten(0, 1), batch["patches"].flatten())
        weights.step(answer + 0.1 * stop + seen)
        right = (first.argmax(-1) == answers).float()
        log.add(
            loss=answer,
            relations=right[:, :2].mean(),
            halves=right[:, 2:].mean(),
            objects=_objects(guess, batch["patches"]),
        )
    weights.finish()


def _objects(guess: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Part of the patches with an object that are named right."""
    there = patches > 0
    return ((guess.argmax(-1) == patches) & there).sum() / there.sum()


def _batches(data: Pictures, run: Run) -> Iterator[Batch]:
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=run.workers,
        pin_memory=run.device == "cuda",
        multiprocessing_context="fork" if run.workers else None,
    )
    for batch in loader:
        yield {name: tensor.to(run.device, non_blocking=True) for name, tensor in batch.items()}


class _Weights:
    """AdamW on exact fp32 weights; the module itself computes in bf16 until `finish`."""

    def __init__(self, module: nn.Module, recipe: Recipe, rate: float, steps: int) -> None:
        self.module, self.recipe, self.rate, self.steps, self.done = module, recipe, rate, steps, 0
        self.used = list(module.parameters())
        self.exact = [weight.detach().float().clone() for weight in self.used]
        module.to(torch.bfloat16)
        matrices = [weight for weight in self.exact if weight.dim() > 1]
        vectors = [weight for weight in self.exact if weight.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
            betas=(0.9, 0.95),
            weight_decay=recipe.weight_decay,
            fused=True,
        )

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()
        for used, exact in zip(self.used, self.exact, strict=True):
            exact.grad = None if used.grad is None else used.grad.float()
            used.grad = None
        nn.utils.clip_grad_norm_(self.exact, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self._copy()
        self.done += 1

    def finish(self) -> None:
        self.module.float()
        self._copy()

    @torch.no_grad()
    def _copy(self) -> None:
        torch._foreach_copy_(self.used, self.exact)

    def _rate(self) -> float:
        """Linear warm-up, then a cosine down to a fiftieth."""
        warmup = self.recipe.warmup
        if self.done < warmup:
            return self.rate * (self.done + 1) / warmup
        part = (self.done - warmup) / max(1, self.steps - warmup)
        return self.rate * (0.02 + 0.98 * (1 + math.cos(math.pi * part)) / 2)


class _Log:
    """Says the means of every 50 steps."""

    def __init__(self, run: Run, name: str, steps: int) -> None:
        self.run, self.name, self.steps, self.done, self.count = run, name, steps, 0, 0
        self.sums: dict[str, torch.Tensor] = {}
        self.started = time.perf_counter()

    def add(self, **values: torch.Tensor) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.done, self.count = self.done + 1, self.count + 1
        if self.done % EVERY == 0 or self.done == self.steps:
            means = ", ".join(f"{k} {v.item() / self.count:.3f}" for k, v in self.sums.items())
            spent = time.perf_counter() - self.started
            self.run.say(f"{self.name} {self.done}: {means}, {spent:.0f} s")
            self.sums, self.count = {}, 0
