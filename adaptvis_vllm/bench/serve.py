"""Benchmarks over HTTP: one server with the plugin and one without, driven in turn.

As `vllm bench serve` does it: streamed chat completions, either as many open at once as a
fixed concurrency allows, or sent at the times of a Poisson process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from adaptvis_vllm.bench.host import environment
from adaptvis_vllm.bench.systems import System, alpha_of
from adaptvis_vllm.bench.throughput import WARM_UP, Engines, in_turn, say_round
from adaptvis_vllm.bench.turns import Turn
from adaptvis_vllm.bench.workloads import Task, Workload, arrivals, tasks
from adaptvis_vllm.steering.params import ScalingVis, SteeringParams

START_SECONDS = 600
MODEL = "bench"
VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # for the routes that empty caches
}
CACHES = ("prefix", "mm", "encoder")


def free_port() -> int:
    """Still free when a server has started: neither Ray's workers (10002 to 19999) nor what the
    system gives to connections (from 32768 on) take it in between."""
    while True:
        port = secrets.randbelow(12_000) + 20_000
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class Server:
    """vLLM's OpenAI server. options: of the engine, as for `LLM`."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the server
        command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL]
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                command.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                command += [flag, value if isinstance(value, str) else json.dumps(value)]
        self.process = subprocess.Popen(
            command,
            env=os.environ | environment(kind) | VARIABLES,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it answers; RuntimeError with the end of its log if it ends first."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        self.log.seek(0)
        raise RuntimeError(f"the server did not start: {self.log.read()[-2000:]}")

    def reset(self) -> None:
        """Empty the caches: systems of one server are asked the same in a round."""
        for cache in CACHES:
            request = urllib.request.Request(f"{self.url}/reset_{cache}_cache", method="POST")
            with urllib.request.urlopen(request, timeout=60) as answer:
                if cache == "prefix" and not json.load(answer)["success"]:
                    raise RuntimeError("the server's prefix cache could not be emptied")

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.log.close()


def run(
    servers: Engines,
    systems: Sequence[System],
    chosen: Workload,
    *,
    requests: int,
    rounds: int,
    launches: int = 1,
    concurrency: int | None = None,
    rate: float | None = None,
    seed: int = 0,
) -> dict[str, list[Turn]]:
    """Turns by system, one per round of each launch. servers: of `Server`s. One of
    concurrency and rate (requests/s) is given."""
    turns: dict[str, list[Turn]] = {s.name: [] for s in systems}
    for number, order in in_turn(servers, systems, rounds, launches):
        work = tasks(chosen, requests if number >= 0 else WARM_UP, 1000 * seed + number + 1)
        for system in order:
            server = servers.of(system)
            server.reset()
            client = Client(server.url, system)
            delays = arrivals(len(work), rate, number) if rate else None
            turn = asyncio.run(client.turn(work, concurrency or len(work), delays))
            if number >= 0:
                turns[system.name].append(turn)
                say_round(number, rounds * launches, system, turn)
    return turns


class Client:
    """Sends the tasks of one turn to a server."""

    def __init__(self, url: str, system: System) -> None:
        from openai import AsyncOpenAI

        self.system = system
        self.client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
        self.figures = Turn(0.0, 0, 0)

    async def turn(self, work: list[Task], concurrency: int, delays: list[float] | None) -> Turn:
        """delays: when each task begins; None: as soon as fewer than `concurrency` are open."""
        urls = [task.urls() for task in work]
        room = asyncio.Semaphore(concurrency)
        self.figures.alphas = [None] * sum(len(t.questions) for t in work)
        begun = time.perf_counter()

        async def one(number: int, task: Task) -> None:
            if delays is not None:
                await asyncio.sleep(delays[number] - (time.perf_counter() - begun))
            async with room:
                for turn in range(len(task.questions)):
                    place = number * len(task.questions) + turn
                    await self._ask(task, turn, urls[number], place)

        await asyncio.gather(*(one(*item) for item in enumerate(work)))
        self.figures.seconds = time.perf_counter() - begun
        await self.client.close()
        return self.figures

    async def _ask(self, task: Task, turn: int, urls: list[str], place: int) -> None:
        messages: Any = task.messages(turn, urls)
        begun = time.perf_counter()
        steering = self.system.steers(place)
        if self.system.twice:
            first = await self.client.chat.completions.create(
                model=MODEL,
                messages=messages,
                max_tokens=1,
                temperature=0,
                logprobs=True,
                extra_body={"ignore_eos": True},
            )
            logprobs = first.choices[0].logprobs
            assert logprobs is not None
            assert logprobs.content is not None
            if steering is not None:
                alpha = alpha_of(steering, math.exp(logprobs.content[0].logprob))
                self.figures.alphas[place] = alpha
                steering = ScalingVis(alpha)
        await self._stream(messages, task.max_tokens, steering, begun, place)

    async def _stream(
        self,
        messages: Any,
        max_tokens: int,
        steering: SteeringParams | None,
        begun: float,
        place: int,
    ) -> None:
        extra: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True}
        if steering is not None:
            extra["vllm_xargs"] = steering.extra_args()
        stream = await self.client.chat.completions.create(
            model=MODEL,
            messages=messages,
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            extra_body=extra,
        )
        times: list[float] = []
        async for chunk in stream:
            # Bytes that are no text yet give chunks without content: count token ids.
            more = (chunk.choices[0].model_extra or {}) if chunk.choices else {}
            times += [time.perf_counter()] * len(more.get("token_ids") or ())
            report = (chunk.model_extra or {}).get("adaptvis")
            if report:
                self.figures.alphas[place] = report["alpha"]
        if len(times) != max_tokens:
            raise RuntimeError(f"an answer has {len(times)} tokens instead of {max_tokens}")
        self.figures.requests += 1
        self.figures.tokens += len(times)
        self.figures.ttft.append(times[0] - begun)
        self.figures.itl += [b - a for a, b in pairwise(times)]
