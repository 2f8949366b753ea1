"""Answers of an engine to a benchmark's questions, each under several steerings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptvis_vllm.evaluation.datasets.benchmarks import MAX_TOKENS
from adaptvis_vllm.evaluation.datasets.question import Question, Source
from adaptvis_vllm.evaluation.left_out import Refuse, not_allowed
from adaptvis_vllm.files.media import Picture, load_image
from adaptvis_vllm.files.urls import is_remote
from adaptvis_vllm.offline.runner import RowRunner
from adaptvis_vllm.offline.schema import output_row
from adaptvis_vllm.steering.first_tokens import CHOICES
from adaptvis_vllm.steering.params import Off, SteeringParams

LOADERS = 4
# What sees a `RequestOutput` as soon as it is finished, before it is dropped: (question's number,
# steering's number, output) -> why the question cannot be used, or None.
See = Callable[[int, int, Any], str | None]


@dataclass(frozen=True)
class Answer:
    """What the engine said, greedily.

    report: `report.Report` as a dict. logprobs: per token its [token id, logprob]s, best
    first; None unless asked for. computed: tokens that the engine computed for it, those of
    the prompt that the prefix cache did not hold included; after a preemption some more.
    """

    text: str
    token_ids: tuple[int, ...]
    report: Mapping[str, Any]
    logprobs: Sequence[Any] | None = None
    computed: int = 0


def answer(
    llm: Any,
    questions: Sequence[Question],
    steerings: Sequence[SteeringParams | None],
    *,
    max_tokens: int = MAX_TOKENS,
    logprobs: int | None = None,
    chat: bool = False,
    progress: bool = False,
    refuse: Refuse = not_allowed,
    see: See | None = None,
) -> list[list[Answer]]:
    """[len(questions)][len(steerings)] answers; none for a question that was refused.

    llm: a vLLM `LLM`. A steering of None is `Off()`: no engine default applies. The requests
    go out question by question, so that the steerings of one question share its prompt
    through the prefix cache. chat: use the chat template even where there is a raw prompt.
    progress: a bar on stderr. refuse: called for a question that cannot be answered. see: called
    with each output as it ends, in any order; with it steerings may ask for maps.
    """
    from tqdm import tqdm

    runner = RowRunner(llm, Path(), logprobs, maps=see is not None)
    settings = [s or Off() for s in steerings]
    options = runner.format.media.get("image")

    def kept(number: int, output: Any) -> Answer | str:
        place, steering = divmod(number, len(settings))
        reason = None if see is None else see(place, steering, output)
        return reason or _answer(output, logprobs is not None)

    found = runner.outputs(_rows(questions, settings, max_tokens, chat, options), kept)
    total = len(questions) * len(settings)
    answers: list[list[Answer]] = [[] for _ in questions]
    bar = tqdm(found, total=total, unit="answer", dynamic_ncols=True, disable=not progress)
    refused: set[int] = set()
    for number, (_, one) in enumerate(bar):
        place = number // len(settings)
        if isinstance(one, str):
            if place not in refused:
                refuse(questions[place], one)
            refused.add(place)
            answers[place].clear()
        if place not in refused:
            answers[place].append(one)
    return answers


def _answer(output: Any, logprobs: bool) -> Answer:
    """Of a finished vLLM `RequestOutput`."""
    row = output_row(None, output, logprobs=logprobs)
    return Answer(
        row["text"],
        tuple(row["token_ids"]),
        row["adaptvis"],
        row.get("logprobs"),
        computed_tokens(output),
    )


def computed_tokens(output: Any) -> int:
    """What a finished vLLM `RequestOutput` cost: the last token is sampled, never computed."""
    prompt = len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
    return prompt + len(output.outputs[0].token_ids) - 1


def check_images(questions: Sequence[Question], refuse: Refuse = not_allowed) -> None:
    """Read every picture once, before an engine is started.

    refuse: called for a question with a bad one. Pictures behind URLs are left out.
    """
    local: dict[Any, Source] = {}
    for question in questions:
        for source in question.images:
            if not is_remote(source):
                local.setdefault(_key(source), source)
    with ThreadPoolExecutor(LOADERS) as pool:
        try:
            looked = {key: pool.submit(_fault, source) for key, source in local.items()}
            for question in questions:
                keys = [_key(s) for s in question.images if _key(s) in looked]
                faults = [fault for key in keys if (fault := looked[key].result()) is not None]
                if faults:
                    refuse(question, faults[0])
        finally:
            pool.shutdown(cancel_futures=True)


def _key(source: Source) -> Any:
    return source if isinstance(source, str | Path) else id(source)


def _fault(source: Source) -> str | None:
    try:
        load_image(source, Path(), "image")
    except ValueError as error:
        return str(error)
    return None


def with_choices(steering: SteeringParams, choices: Sequence[str]) -> SteeringParams:
    """With a question's choices for its options, where these are asked for; ValueError where the
    question has none."""
    if steering.options != CHOICES:
        return steering
    if len(choices) < 2:
        raise ValueError("options is 'choices', but the question has no choices")
    return replace(steering, options=tuple(choices))


def _rows(
    questions: Sequence[Question],
    steerings: Sequence[SteeringParams],
    max_tokens: int,
    chat: bool,
    options: Mapping[str, Any] | None,
) -> Iterator[dict[str, Any] | ValueError]:
    for question in questions:
        try:
            images: list[Picture] = [
                load_image(source, Path(), "image", options) for source in question.images
            ]
        except ValueError as error:
            yield from (error for _ in steerings)
            continue
        text = {"question": question.question}
        if question.prompt is not None and not chat:
            text = {"prompt": question.prompt}
        for steering in steerings:
            try:
                steering = with_choices(steering, question.choices)
            except ValueError as error:
                yield error
                continue
            yield {
                "id": question.id,
                **text,
                "images": images,
                "max_tokens": max_tokens,
                "adaptvis": steering,
            }
