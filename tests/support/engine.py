"""Real vLLM engines in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoints.images import make_image

from adaptvis_vllm import SteeringParams
from support.garbage import freeze

BLOCK = 32


def make_llm(model: Path, **options: Any) -> Any:
    """An `LLM` with the options that tests want unless they say otherwise."""
    from vllm import LLM

    defaults: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "kv_cache_memory_bytes": 64 * 2**20,
        "limit_mm_per_prompt": {"image": 3},
        "max_num_seqs": 8,
        "block_size": BLOCK,
        "max_logprobs": 20,
        "enable_prefix_caching": True,
    }
    freeze()
    return LLM(str(model), **(defaults | options))


def inspect_models_here() -> None:
    """vLLM looks at a model class that it has not met in a process of its own, so as not to touch
    CUDA in this one: seconds for every family, and for nothing on a CPU."""
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda look: look()


def close(llm: Any) -> None:
    """Give back the process-wide state of an in-process engine."""
    llm.llm_engine.engine_core.shutdown()


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def worker(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def runner(llm: Any) -> Any:
    return worker(llm).model_runner


def prompt(image: int | None, text: str = "Where is the red cat?") -> dict[str, Any]:
    """A raw prompt with one image (its seed), or with none."""
    if image is None:
        return {"prompt": f"USER: {text} ASSISTANT:"}
    return {
        "prompt": f"USER: <image>\n{text} ASSISTANT:",
        "multi_modal_data": {"image": make_image(image)},
    }


def sampling(steering: SteeringParams | None = None, **options: Any) -> Any:
    from vllm import SamplingParams

    defaults = {"temperature": 0.0, "max_tokens": 8}
    return SamplingParams(
        extra_args=steering.extra_args() if steering else None, **(defaults | options)
    )


def generate(llm: Any, prompts: Sequence[Any], params: Any) -> list[Any]:
    return llm.generate(list(prompts), params, use_tqdm=False)


def tokens(output: Any) -> list[list[int]]:
    return [list(answer.token_ids) for answer in output.outputs]


def first_logprobs(output: Any) -> dict[int, float]:
    return {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}


def flat(report: Any, name: str = "") -> dict[str, Any]:
    """A report without nesting, as `pytest.approx` takes it."""
    pairs = report.items() if isinstance(report, dict) else enumerate(report or ())
    out: dict[str, Any] = {}
    for key, value in pairs:
        place = f"{name}.{key}"
        out |= flat(value, place) if isinstance(value, dict | list) else {place: value}
    return out


@contextmanager
def counted_steps(llm: Any) -> Iterator[list[dict[str, int]]]:
    """Collects `num_scheduled_tokens` of every step."""
    sched = scheduler(llm)
    original, steps = sched.schedule, []

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            steps.append(dict(output.num_scheduled_tokens))
        return output

    sched.schedule = schedule
    try:
        yield steps
    finally:
        del sched.schedule


def moment(request: Any) -> str:
    """Where a request of the scheduler stands."""
    return "decode" if request.num_output_tokens else "prefill"


@contextmanager
def side_rows_seen(steering: Any) -> Iterator[list[tuple[int, int]]]:
    """(tokens of the batch, side rows beside them) of each step that goes through the model."""
    seen: list[tuple[int, int]] = []
    original = steering.before_forward
    steering.before_forward = lambda *args: (
        seen.append((steering.plan.num_tokens, steering.extra_rows)),
        original(*args),
    )
    try:
        yield seen
    finally:
        del steering.before_forward
