"""`AsyncLLM`, the engine of the server: streams, and an engine core in another process."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from support.bad_requests import REFUSALS, asked, bad_requests
from support.engine import close, flat, generate, make_llm, prompt, sampling, tokens

from adaptvis_vllm import AdaptVis, Candidates, ScalingVis

STEERINGS = (
    Candidates((0.3, 3)),
    ScalingVis(3.0),
    AdaptVis(0.3, 3.0, 1.0),
    AdaptVis(0.3, 3.0, 0.4),
)


async def everything(model: Path) -> tuple[list[list[Any]], dict[str, Any], list[Any]]:
    """All at once: the parts of eight streams; by name what became of bad requests, raw prompts
    that `AsyncLLM` renders in threads of its own; and of as many good ones about their picture."""
    from vllm import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            str(model),
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            kv_cache_memory_bytes=64 * 2**20,
            max_num_seqs=8,
            limit_mm_per_prompt={"image": 3},
        )
    )

    async def stream(number: int) -> list[Any]:
        params = sampling(STEERINGS[number % 4], output_kind=RequestOutputKind.DELTA)
        return [part async for part in engine.generate(prompt(number // 4), params, str(number))]

    async def end(name: str, item: Any, params: Any) -> Any:
        try:
            return [part async for part in engine.generate(item, params, name)][-1]
        except Exception as error:
            return error

    bad = bad_requests()
    calls: list[Any] = []
    for name, (item, options, _) in bad.items():
        calls.append(end(name, item, asked(**options)))
        calls.append(end(f"beside {name}", prompt(0), sampling()))
    try:
        ends = await asyncio.gather(*calls, *(stream(number) for number in range(8)))
    finally:
        engine.shutdown()
    both = 2 * len(bad)
    refused = dict(zip(bad, ends[:both:2], strict=True))
    return ends[both:], refused, ends[1:both:2]


@pytest.fixture(scope="module")
def found(model: Path) -> tuple[list[list[Any]], dict[str, Any], list[Any]]:
    return asyncio.run(everything(model))


@pytest.fixture(scope="module")
def offline(found: Any, model: Path) -> list[Any]:
    """Of an engine in this process: what the streams and the good requests should come to."""
    llm = make_llm(model)
    params = [*(sampling(STEERINGS[number % 4]) for number in range(8)), sampling()]
    outputs = generate(llm, [*(prompt(number // 4) for number in range(8)), prompt(0)], params)
    close(llm)
    return outputs


def test_streams_equal_the_offline_engine(found: Any, offline: list[Any]) -> None:
    """Token by token; the report is on the last part and only there."""
    for parts, expected in zip(found[0], offline[:8], strict=True):
        together = [token for part in parts for token in part.outputs[0].token_ids]
        assert [together] == tokens(expected)
        # A reader that is slower than the engine gets several tokens in one part.
        assert all(part.outputs[0].token_ids for part in parts[:-1])
        assert [part.finished for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(part.adaptvis is None for part in parts[:-1])
        mine, other = flat(parts[-1].adaptvis), flat(expected.adaptvis)
        assert mine == pytest.approx(other, abs=1e-5)


def test_a_bad_request_hurts_nobody_else(found: Any, offline: list[Any]) -> None:
    """An error that names what is wrong, and for the others the right answer."""
    _, ends, others = found
    for name, (_, _, reason) in bad_requests().items():
        assert isinstance(ends[name], REFUSALS), (name, ends[name])
        assert re.search(reason, str(ends[name])), name
    for answer in others:
        assert tokens(answer) == tokens(offline[8])
