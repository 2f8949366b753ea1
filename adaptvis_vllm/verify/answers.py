"""Answers of an engine and of the reference in one form, and how far apart two of them are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from adaptvis_vllm.verify.questions import Ask

BEST = 20  # log-probabilities a token, vLLM's default `max_logprobs`
COMPARED = 5  # of them, the other's best


@dataclass(frozen=True)
class Answer:
    """token_ids: [T]. logprobs: per token, token id -> log-probability of the `BEST` best.
    prompt: its token ids, placeholders expanded. report: `Report` as a dict, None where nothing
    was asked for. cached: prompt tokens from the prefix cache."""

    token_ids: list[int]
    logprobs: list[dict[int, float]]
    prompt: list[int]
    report: dict[str, Any] | None = None
    cached: int = 0

    @property
    def alpha(self) -> float | None:
        return self.report["alpha"] if self.report else None


def of_engine(
    engine: Any,
    asks: Sequence[Ask],
    max_tokens: int,
    *,
    alone: bool = False,
    after_step: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Ask a vLLM engine, all at once, or one after the other.

    engine: has the `LLM` as `llm`. after_step: called with 1, 2, ... after each engine step.
    """
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            logprobs=BEST,
            extra_args=ask.steering.extra_args() if ask.steering else None,
        )
        for ask in asks
    ]
    chats: Any = [ask.messages(inline=True) for ask in asks]
    if alone:
        outputs = [
            engine.llm.chat([chat], one, use_tqdm=False)[0]
            for chat, one in zip(chats, params, strict=True)
        ]
    elif after_step is None:
        outputs = engine.llm.chat(chats, params, use_tqdm=False)
    else:
        outputs = _stepwise(engine.llm, chats, params, after_step)
    return [_answer(output) for output in outputs]


def _stepwise(llm: Any, chats: Any, params: Any, after_step: Callable[[int], None]) -> list[Any]:
    llm.enqueue_chat(chats, params, use_tqdm=False)
    done = []
    for number in count(1):
        done += [output for output in llm.llm_engine.step() if output.finished]
        if not llm.llm_engine.has_unfinished_requests():
            break
        after_step(number)
    return sorted(done, key=lambda output: int(output.request_id))


def _answer(output: Any) -> Answer:
    (choice,) = output.outputs
    return Answer(
        list(choice.token_ids),
        [{token: entry.logprob for token, entry in step.items()} for step in choice.logprobs],
        list(output.prompt_token_ids),
        getattr(output, "adaptvis", None),
        output.num_cached_tokens or 0,
    )


def of_reference(plain: Any, asks: Sequence[Ask], max_tokens: int) -> list[Answer]:
    """Ask plain transformers. plain: has the `ReferenceModel` as `model`."""
    out = []
    for ask in asks:
        one = plain.model.generate(
            ask.messages(inline=False),
            ask.images,
            ask.steering,
            max_tokens=max_tokens,
            logprobs=BEST,
            ignore_eos=True,
        )
        logprobs = [dict(best) for best in one.top_logprobs]
        out.append(Answer(one.token_ids, logprobs, one.prompt_token_ids, one.report.as_dict()))
    return out


def allow_tf32(plain: Any, allowed: bool) -> None:
    """Whether a GPU may multiply fp32 numbers in TF32, from now on in this process."""
    import torch

    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def difference(mine: Answer, other: Answer, tokens: int | None = None) -> float:
    """Largest difference of log-probabilities, over the other's `COMPARED` best of each token.

    Both continue the same text up to and including the first token in which they differ.
    tokens: how many to look at; None for all.
    """
    worst = 0.0
    pairs = zip(mine.logprobs, other.logprobs, mine.token_ids, other.token_ids, strict=False)
    for number, (left, right, one, two) in enumerate(pairs):
        if number == tokens:
            break
        for token, value in list(right.items())[:COMPARED]:
            if token in left:
                worst = max(worst, abs(left[token] - value))
        if one != two:
            break
    return worst


def largest(mine: Sequence[Answer], other: Sequence[Answer], tokens: int | None = None) -> float:
    """Of all pairs."""
    return max(difference(a, b, tokens) for a, b in zip(mine, other, strict=True))


def same(mine: Sequence[Answer], other: Sequence[Answer]) -> int:
    """How many pairs agree in every token."""
    return sum(a.token_ids == b.token_ids for a, b in zip(mine, other, strict=True))
