"""Between probe and steer the host never waits for the device.

On a GPU, PyTorch itself raises at every synchronising call. Without one, the calls that
would synchronise are made to raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adaptvis_vllm import AdaptVis, ScalingVis, SteeringParams
from adaptvis_vllm.steps import Steering

VOCAB = 97
FORBIDDEN = (
    *("item", "cpu", "tolist", "numpy", "nonzero", "masked_select"),
    *("__bool__", "__int__", "__float__", "__index__", "__array__"),
)


@contextmanager
def no_sync(device: str) -> Iterator[None]:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return

    def refuse(name: str) -> Any:
        def call(*_: Any, **__: Any) -> None:
            raise AssertionError(f"Tensor.{name} waits for the device")

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in FORBIDDEN:
            patch.setattr(torch.Tensor, name, refuse(name))
        patch.setattr(torch.cuda, "synchronize", refuse("cuda.synchronize"))
        # vLLM's CPU runner replaces the class by one without this method.
        patch.setattr(torch.cuda.Event, "synchronize", refuse("Event"), raising=False)
        yield


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Placeholder:
    """vLLM's `PlaceholderRange`, as far as it is asked."""

    def __init__(self, offset: int, length: int) -> None:
        self.range = (offset, offset + length - 1)

    def extract_embeds_range(self) -> list[tuple[int, int]]:
        return [self.range]


def new_request(req_id: str, length: int, steering: SteeringParams) -> Any:
    return SimpleNamespace(
        req_id=req_id,
        num_computed_tokens=0,
        prompt_len=length,
        mm_features=[SimpleNamespace(modality="image", mm_position=Placeholder(3, length - 8))],
        sampling_params=SimpleNamespace(extra_args=steering.extra_args()),
    )


def output(
    scheduled: dict[str, int],
    new: list[Any] = (),
    cached: dict[str, int] | None = None,
    finished: tuple[str, ...] = (),
    resumed: tuple[str, ...] = (),
) -> Any:
    cached = cached or {}
    return SimpleNamespace(
        num_scheduled_tokens=scheduled,
        scheduled_new_reqs=list(new),
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached),
            num_computed_tokens=list(cached.values()),
            resumed_req_ids=set(resumed),
        ),
        finished_req_ids=set(finished),
    )


def layer(steering: Steering) -> None:
    """What every attention layer does, without the attention."""
    plan = steering.plan
    if plan is not None:
        plan.layers_done += sum(rows is not None for rows in plan.by_layer)


def step(steering: Steering, scheduler_output: Any, logits: torch.Tensor) -> Any:
    """One step of either runner adapter; returns the (not yet read) model output."""
    steering.begin_step(scheduler_output)
    if steering.plan is not None:
        order = list(scheduler_output.num_scheduled_tokens)
        counts = list(scheduler_output.num_scheduled_tokens.values())
        index = {name: number for number, name in enumerate(order)}
        steering.locate(index, np.concatenate([[0], np.cumsum(counts)]))
    layer(steering)
    steering.end_forward()
    steering.observe(logits)
    return steering.end_sampling(SimpleNamespace(get_output=lambda: SimpleNamespace()))


def test_probe_to_steer(device: str) -> None:
    torch.manual_seed(0)
    steering = Steering(torch.device(device), range(4))
    logits = torch.randn(3, VOCAB, device=device)
    requests = [
        new_request("a", 40, AdaptVis(0.5, 2.0, 1.0)),
        new_request("b", 30, AdaptVis(0.5, 2.0, 0.0, confidence="entropy", confidence_decimals=2)),
        new_request("c", 20, ScalingVis(1.5, layers="1-2")),
    ]
    steering.alpha.fill_(float("nan"))
    if device == "cuda":
        torch.cuda.synchronize()
    with no_sync(device):
        probed = step(steering, output({"a": 40, "b": 30, "c": 20}, requests), logits)
        # Scheduled before anything of the probe is known on the host.
        steering.begin_step(output({"a": 1, "b": 1, "c": 1}, cached={"a": 39, "b": 29, "c": 20}))
        steering.locate({"b": 0, "a": 1, "c": 2}, np.array([0, 1, 2, 3]))
        rows = steering.plan.by_layer[0]
        layer(steering)
        steering.end_forward()
        steering.observe(logits)
        steered = steering.end_sampling(SimpleNamespace(get_output=lambda: SimpleNamespace()))
    found = probed.get_output().adaptvis
    probabilities = logits.float().softmax(-1).cpu()
    assert found["a"] == pytest.approx((probabilities[0].max().item(), 0.5))
    assert found["b"][1] == 2.0
    assert not hasattr(steered.get_output(), "adaptvis")
    assert rows.alpha[rows.slots.long()].tolist() == [0.5, 2.0]
    assert rows.rows.tolist() == [1, 0]
    assert rows.kv_lens.tolist() == [40, 30]
    with no_sync(device):
        step(steering, output({"a": 1}, cached={"a": 41}, finished=("b", "c")), logits[:1])
    assert set(steering.requests) == {"a"}


def test_the_guard_works(device: str) -> None:
    tensor = torch.ones(3, device=device)
    with pytest.raises((AssertionError, RuntimeError)), no_sync(device):
        tensor.sum().item()


def test_slots_are_recycled_and_the_table_grows(device: str) -> None:
    """A slot's next owner gets its own alpha, and many requests at once have room."""
    steering = Steering(torch.device(device), range(2))
    alphas = np.linspace(0.5, 3.0, 150)
    for start in (0, 150):
        names = [f"{start + i}" for i in range(150)]
        new = [new_request(n, 20, ScalingVis(float(a))) for n, a in zip(names, alphas, strict=True)]
        finished = tuple(f"{i}" for i in range(150)) if start else ()
        steering.begin_step(output(dict.fromkeys(names, 20), new, finished=finished))
        steering.locate({n: i for i, n in enumerate(names)}, np.arange(151) * 20)
        rows = steering.plan.by_layer[0]
        found = rows.alpha[rows.slots.long()]
        assert found.tolist() == pytest.approx(alphas.tolist())
        assert rows.rows.tolist() == [20 * i + 19 for i in range(150)]
        assert steering._slots_used == 150
        layer(steering)
        steering.end_forward()
        steering.end_sampling(SimpleNamespace())
        alphas = alphas[::-1]


def test_never_silently_unsteered(device: str) -> None:
    """A request that passes its last prompt position without its steer step is an error."""
    steering = Steering(torch.device(device), range(2))
    logits = torch.zeros(1, VOCAB, device=device)
    step(steering, output({"a": 20}, [new_request("a", 20, AdaptVis(0.5, 2, 0.5))]), logits)
    with pytest.raises(RuntimeError, match="without having been steered"):
        steering.begin_step(output({"a": 1}, cached={"a": 20}))
