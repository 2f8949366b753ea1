"""`AsyncLLM`, the engine of the server: streams, and an engine core in another process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.engine import close, flat, generate, make_llm, prompt, sampling, tokens

from adaptvis_vllm import AdaptVis, Candidates, ScalingVis

STEERINGS = (
    Candidates((0.3, 3)),
    ScalingVis(3.0),
    AdaptVis(0.3, 3.0, 1.0),
    AdaptVis(0.3, 3.0, 0.4),
)


async def stream(model: Path) -> list[list[Any]]:
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
        )
    )

    async def one(number: int) -> list[Any]:
        params = sampling(STEERINGS[number % 4], output_kind=RequestOutputKind.DELTA)
        return [part async for part in engine.generate(prompt(number // 4), params, str(number))]

    try:
        return await asyncio.gather(*(one(number) for number in range(8)))
    finally:
        engine.shutdown()


def test_streams_equal_the_offline_engine(model: Path) -> None:
    """Token by token; the report is on the last part and only there."""
    streams = asyncio.run(stream(model))
    llm = make_llm(model)
    try:
        params = [sampling(STEERINGS[number % 4]) for number in range(8)]
        offline = generate(llm, [prompt(number // 4) for number in range(8)], params)
    finally:
        close(llm)
    for parts, expected in zip(streams, offline, strict=True):
        together = [token for part in parts for token in part.outputs[0].token_ids]
        assert [together] == tokens(expected)
        # A reader that is slower than the engine gets several tokens in one part.
        assert all(part.outputs[0].token_ids for part in parts[:-1])
        assert [part.finished for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(part.adaptvis is None for part in parts[:-1])
        mine, other = flat(parts[-1].adaptvis), flat(expected.adaptvis)
        assert mine == pytest.approx(other, abs=1e-5)
