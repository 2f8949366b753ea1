"""Between scheduling a step and sending its results the host never waits for the device.

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

from adaptvis_vllm import AdaptVis, Candidates, ScalingVis, SteeringParams
from adaptvis_vllm.engine import plan, steps
from adaptvis_vllm.engine.steps import Steering

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
        scheduled_spec_decode_tokens={},
    )


HIDDEN = 8


def step(steering: Steering, scheduler_output: Any, logits: torch.Tensor | None) -> Any:
    """One step of either runner adapter; returns the (not yet read) model output.

    logits: [requests + side rows, V], what the model's head gives.
    """
    steering.begin_step(scheduler_output)
    counts = list(scheduler_output.num_scheduled_tokens.values())
    plan, total = steering.plan, sum(counts)
    if plan is not None:
        index = {name: i for i, name in enumerate(scheduler_output.num_scheduled_tokens)}
        steering.locate(index, np.concatenate([[0], np.cumsum(counts)]))
        rows = torch.zeros(total + steering.extra_rows, HIDDEN, device=steering.device)
        steering.copy_rows(rows, rows[:, 0].long(), rows[None, :, 0].long().repeat(3, 1))
        steering.before_forward(SimpleNamespace(), rows[:, 0] > 0)
        plan.layers_done += sum(rows is not None for rows in plan.by_layer)
        steering.after_forward(rows)
    steering.end_forward()
    hidden = torch.zeros(len(counts), HIDDEN, device=steering.device)
    head = (lambda rows: None) if logits is None else (lambda rows: logits[: len(rows)].clone())
    sampled = steering.logits(hidden, head)
    return steering.end_sampling(
        SimpleNamespace(get_output=lambda: SimpleNamespace(sampled=sampled))
    )


def test_choice_without_waiting(device: str) -> None:
    torch.manual_seed(0)
    steering = Steering(torch.device(device), dict.fromkeys(range(4), 4))
    logits = torch.randn(7, VOCAB, device=device)
    requests = [
        new_request("a", 40, AdaptVis(0.5, 2.0, 1.0)),
        new_request("b", 30, AdaptVis(0.5, 2.0, 0.0, confidence="entropy", confidence_decimals=2)),
        new_request("c", 20, ScalingVis(1.5, layers="1-2")),
    ]
    steering.held.alpha.fill_(float("nan"))
    chosen = []
    if device == "cuda":
        torch.cuda.synchronize()
    with no_sync(device):
        steering.begin_step(output({}))
        first = output({"a": 40, "c": 20, "b": 30}, requests)
        commits = steering.logits
        steering.logits = lambda *args: (  # type: ignore[method-assign]
            steering.choosing.commits.append(chosen.append),
            commits(*args),
        )[1]
        done = step(steering, first, logits)
        del steering.logits
        # Resumed, before anything of the first step is known on the host.
        again = output({"a": 40, "b": 1}, cached={"a": 0, "b": 29}, resumed=("a", "b"))
        steering.begin_step(again)
        steering.locate({"b": 0, "a": 1}, np.array([0, 1, 41]))
        rows = steering.plan.by_layer[0]
        steering.plan.layers_done = 4
        steering.end_forward()
        resumed = steering.end_sampling(SimpleNamespace(get_output=lambda: SimpleNamespace()))
    result = done.get_output()
    probabilities = logits.float().softmax(-1).cpu()
    assert result.adaptvis["a"] == pytest.approx((probabilities[0].max().item(), 0.5))
    assert result.adaptvis["b"][1] == 2.0
    # Rows a, c, b; then a low, a high, b low, b high.
    assert chosen[0].tolist() == [0, 3]
    assert torch.equal(result.sampled, logits[[3, 1, 6]])
    assert not hasattr(resumed.get_output(), "adaptvis")
    alphas = rows.alpha[rows.slots.long()].tolist()
    found = zip(rows.rows.tolist(), rows.kv_lens.tolist(), rows.own.tolist(), alphas, strict=True)
    assert sorted(found) == [(0, 30, 0, 2.0), (40, 40, 0, 0.5)]
    with no_sync(device):
        step(steering, output({"a": 1}, cached={"a": 41}, finished=("b", "c")), logits[:1])
    assert set(steering.held.requests) == {"a"}


def test_candidates_without_waiting(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the rows of those that choose, whoever came first; nothing of theirs is committed."""
    for module in (plan, steps):
        monkeypatch.setattr(module, "HEAD_ROWS", 2)
    torch.manual_seed(0)
    steering = Steering(torch.device(device), dict.fromkeys(range(4), 4))
    logits = torch.randn(20, VOCAB, device=device)
    requests = [
        new_request("c", 40, Candidates((0.5, 2.0, 1.5), layers="1-2", confidence="margin")),
        new_request("a", 30, AdaptVis(0.5, 2.0, 0.0)),
        new_request("d", 20, Candidates((3.0,))),
    ]
    if device == "cuda":
        torch.cuda.synchronize()
    chosen: list[Any] = []
    with no_sync(device):
        made = steering.logits
        steering.logits = lambda *args: (  # type: ignore[method-assign]
            steering.choosing.commits.append(chosen.append),
            made(*args),
        )[1]
        done = step(steering, output({"c": 40, "a": 30, "d": 20}, requests), logits)
        del steering.logits
        # Preempted before its first token left, and resumed: nothing is computed again.
        steering.begin_step(output({"c": 40}, cached={"c": 0}, resumed=("c",)))
    assert steering.plan is None
    result = done.get_output()
    p = logits.float().softmax(-1).cpu()
    assert chosen[0].tolist() == [1]
    # Rows c, a, d; then a low, a high, c's three and d's one, of which two are in a second call.
    assert torch.equal(result.sampled, logits[[0, 4, 2]])
    assert result.adaptvis["a"] == pytest.approx((p[1].max().item(), 2.0))
    tokens, probabilities, measures = result.adaptvis["c"]
    rows = [5, 6, 0]  # `step` gives a second call its logits from the beginning
    assert tokens == p[rows].argmax(-1).tolist()
    assert probabilities == pytest.approx(p[rows].max(-1).values.tolist())
    best, second = p[0].topk(2).values.tolist()
    assert measures[:2] == pytest.approx([best, best - second])
    assert result.adaptvis["d"][0] == [p[1].argmax().item()]


def test_ranks_without_logits_take_part(device: str) -> None:
    """In every call of the head, which gathers, and in the choice; they report nothing."""
    steering = Steering(
        torch.device(device), dict.fromkeys(range(4), 4), broadcast=lambda conf: conf.fill_(0.25)
    )
    requests = [
        new_request("a", 30, AdaptVis(0.5, 2.0, 0.2)),
        new_request("c", 40, Candidates((0.5, 2.0, 1.5))),
    ]
    scheduled = output({"a": 30, "c": 40}, requests)
    done = step(steering, scheduled, None).get_output()
    assert done.sampled is None
    assert done.adaptvis["a"] == (0.25, 2.0)
    assert steering.held.alpha[steering.held.requests["a"].slot] == 2.0


def test_side_rows_lie_behind_the_batch(device: str) -> None:
    """With drafts of others and placeholders of its own behind row n."""
    steering = Steering(torch.device(device), dict.fromkeys(range(3), 4))
    new = [
        new_request("a", 40, AdaptVis(0.5, 2.0, 1.0, layers="1")),
        new_request("b", 30, ScalingVis(3.0)),
    ]
    scheduled = output({"x": 4, "a": 43, "b": 30}, new, cached={"x": 50})
    scheduled.scheduled_spec_decode_tokens = {"x": [1, 2, 3], "a": [-1, -1, -1]}
    steering.begin_step(scheduled)
    assert steering.extra_rows == 2
    steering.locate({"x": 0, "a": 1, "b": 2}, np.array([0, 4, 47, 77]))
    plan = steering.plan
    assert plan.tail == slice(77, 79)
    assert plan.base.tolist() == [43]
    assert plan.source.tolist() == [43, 43]
    assert plan.lines.tolist() == [4]  # of 4 + 4 + 1
    for layer, rows in enumerate(plan.by_layer):
        assert rows.rows.tolist() == [76, 77]
        assert rows.own.tolist() == [0, 2]
        assert rows.reqs.tolist() == [2, 1]
        assert rows.kv_lens.tolist() == [30, 40]
        first = int(rows.slots[1])
        assert rows.alpha[first : first + 2].tolist() == [0.5, 2]
        assert rows.heads.tolist() == [[15], [15 if layer == 1 else 0]]
        assert rows.rules.tolist() == [0, 0]
        assert rows.alpha[rows.slots[0].long()] == 3
    embeds = torch.arange(79 * 2, device=device).float().view(79, 2)
    positions = torch.arange(3 * 79, device=device).view(3, 79)
    steering.copy_rows(embeds, positions, positions[0], None)
    padding = torch.arange(80, device=device) >= 77
    features = [torch.arange(80.0, device=device)[:, None]]
    steering.before_forward(SimpleNamespace(deepstack_input_embeds=features), padding)
    assert padding.nonzero().flatten().tolist() == [79]  # experts look at side rows
    assert features[0][77:].flatten().tolist() == [43, 43, 79]
    assert torch.equal(embeds[77:], embeds[[43, 43]])
    assert torch.equal(positions[:, 77:], positions[:, [43, 43]])


@pytest.mark.parametrize(("rank", "words"), [(0, [[10, 0], [-1, 255]]), (1, [[1, 0], [-1, 255]])])
def test_a_rank_steers_its_own_heads(device: str, rank: int, words: list[list[int]]) -> None:
    """Of 80, each of two ranks holds 40; where a rank holds none of them, a layer has no rows."""
    steering = Steering(torch.device(device), dict.fromkeys(range(2), 40), rank=rank)
    new = [
        new_request("a", 40, ScalingVis(0.5, heads="0.1,0.3,0.40,1.79", rule="pai")),
        new_request("b", 30, ScalingVis(3.0, heads="0.*", rule="add_log")),
    ]
    steering.begin_step(output({"a": 40, "b": 30}, new))
    steering.locate({"a": 0, "b": 1}, np.array([0, 40, 70]))
    first, second = steering.plan.by_layer
    assert first.heads.tolist() == words
    assert first.rules.tolist() == [2, 1]
    assert (second is None) == (rank == 0)
    assert second is None or second.heads.tolist() == [[0, 1 << 7]]


def test_rows_of_generated_tokens(device: str) -> None:
    """In every step that computes one, resumed ones too, at the alpha in the table."""
    steering = Steering(torch.device(device), {0: 4})
    both = [
        new_request("a", 40, AdaptVis(0.5, 2.0, 1.0, rows="generated")),
        new_request("b", 30, ScalingVis(3.0)),
    ]
    step(steering, output({"a": 40, "b": 30}, both), torch.randn(4, VOCAB, device=device))

    def rows(scheduled: dict[str, int], start: dict[str, int], resumed: Any = ()) -> Any:
        steering.begin_step(output(scheduled, cached=start, resumed=resumed))
        if steering.plan is None:
            return None
        names = list(scheduled)
        steering.locate(
            {name: i for i, name in enumerate(names)},
            np.cumsum([0, *(scheduled[name] for name in names)]),
        )
        found = steering.plan.by_layer[0]
        steering.plan.layers_done = 1
        steering.end_forward()
        steering.end_sampling(SimpleNamespace())
        lists = (found.rows, found.kv_lens, found.own, found.alpha[found.slots.long()])
        return [values.tolist() for values in lists]

    assert rows({"b": 1, "a": 1}, {"b": 30, "a": 40}) == [[1], [41], [0], [0.5]]
    assert rows({"b": 1}, {"b": 31}) is None
    again = rows({"b": 1, "a": 5}, {"b": 32, "a": 38}, resumed=("a",))
    assert sorted(zip(*again, strict=True)) == [(row, row + 38, 0, 0.5) for row in range(2, 6)]


def test_the_guard_works(device: str) -> None:
    tensor = torch.ones(3, device=device)
    with pytest.raises((AssertionError, RuntimeError)), no_sync(device):
        tensor.sum().item()


def test_slots_are_recycled_and_the_table_grows(device: str) -> None:
    """A slot's next owner gets its own alpha, and many requests at once have room."""
    steering = Steering(torch.device(device), dict.fromkeys(range(2), 4))
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
        assert steering.held._slots_used == 150
        steering.plan.layers_done = 2
        steering.end_forward()
        steering.end_sampling(SimpleNamespace())
        alphas = alphas[::-1]


def test_never_silently_unsteered(device: str) -> None:
    """Layers without rows, a choice that nobody made, a prompt that was passed: all errors."""
    steering = Steering(torch.device(device), dict.fromkeys(range(2), 4))
    first = output({"a": 20}, [new_request("a", 20, AdaptVis(0.5, 2, 0.5))])
    steering.begin_step(first)
    steering.locate({"a": 0}, np.array([0, 20]))
    steering.plan.layers_done = 1
    with pytest.raises(RuntimeError, match="1 of 2 layers were steered"):
        steering.end_forward()
    steering.choosing = steering.sampling
    with pytest.raises(RuntimeError, match="without a choice"):
        steering.end_sampling(SimpleNamespace())
    steering.held.pending["a"] = steering.held.requests["a"]
    steering.held.requests["a"].steered = False
    with pytest.raises(RuntimeError, match="without having been steered"):
        steering.begin_step(output({"a": 1}, cached={"a": 20}))
