"""What answers a turn inside a host's process: a vLLM engine, or plain transformers."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

from adaptvis_vllm.bench.systems import VANILLA, System, alpha_of
from adaptvis_vllm.bench.turns import Turn
from adaptvis_vllm.bench.workloads import Task
from adaptvis_vllm.steering.params import ScalingVis, SteeringParams


class Plain:
    """The transformers reference: one request at a time, two whole generations for AdaptVis,
    as the paper's code does."""

    def __init__(self, options: dict[str, Any]) -> None:
        import torch

        from adaptvis_vllm.reference.model import ReferenceModel

        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = options.get("dtype", "float32")
        self.model = ReferenceModel(options["model"], dtype=dtype, device=device)

    def turn(
        self,
        work: list[Task],
        chosen: System,
        concurrency: int,
        profile: bool,
        delays: list[float] | None = None,
    ) -> Turn:
        del concurrency, profile, delays  # one at a time, and not vLLM's steps
        memory = PeakMemory()
        begun, cpu = time.perf_counter(), time.process_time()
        turn = Turn(0.0, 0, 0)
        for task in work:
            for number in range(len(task.questions)):
                messages = [
                    {**m, "content": [_for_template(part) for part in m["content"]]}
                    for m in task.messages(number)
                ]
                steering = chosen.steers(turn.requests)

                def ask(params: SteeringParams | None, task: Task = task, m: Any = messages) -> Any:
                    return self.model.generate(
                        m, task.images, params, max_tokens=task.max_tokens, ignore_eos=True
                    )

                first = ask(None)
                alpha = None
                if steering is not None:
                    alpha = alpha_of(steering, math.exp(first.logprobs[0]))
                    ask(ScalingVis(alpha))
                turn.alphas.append(alpha)
                turn.requests += 1
                turn.tokens += task.max_tokens
        turn.seconds = time.perf_counter() - begun
        turn.cpu_seconds = time.process_time() - cpu
        turn.peak_bytes = memory.peak()
        return turn


def _for_template(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image_pil" else part


class Engine:
    """A vLLM engine in this process."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        from vllm import LLM

        from adaptvis_vllm.options import cache_bytes

        size = cache_bytes(options.get("kv_cache_memory_bytes"), 0.1)
        self.llm = LLM(**(options | {"kv_cache_memory_bytes": size}))
        self.core: Any = self.llm.llm_engine.engine_core
        if not hasattr(self.core, "engine_core"):
            raise RuntimeError("needs VLLM_ENABLE_V1_MULTIPROCESSING=0 and one GPU")
        loaded = hasattr(self.llm.llm_engine.input_processor, "adaptvis")
        if loaded == (kind == VANILLA):
            raise RuntimeError(f"the plugin is {'' if loaded else 'not '}loaded in {kind}")
        self.scheduler = self.core.engine_core.scheduler
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.passes = self.scheduled = self.blocks = 0
        self.times: dict[str, list[float]] = {}
        self._watch()

    def _watch(self) -> None:
        """Count what is scheduled and note when tokens appear."""
        schedule, get_output = self.scheduler.schedule, self.core.get_output

        def counted(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            if output.total_num_scheduled_tokens:
                self.passes += 1
                self.scheduled += output.total_num_scheduled_tokens
                used = self.pool.num_gpu_blocks - self.pool.get_num_free_blocks() - 1
                self.blocks = max(self.blocks, used)  # one block is the null block
            return output

        def noted() -> Any:
            outputs = get_output()
            now = time.perf_counter()
            for output in outputs.outputs:
                if output.new_token_ids:
                    self.times.setdefault(output.request_id, []).append(now)
            return outputs

        self.scheduler.schedule = counted
        self.core.get_output = noted

    def turn(
        self,
        work: list[Task],
        chosen: System,
        concurrency: int,
        profile: bool,
        delays: list[float] | None = None,
    ) -> Turn:
        """delays: seconds after which each task begins, however many are open; None: as soon as
        fewer than `concurrency` are."""
        from adaptvis_vllm.bench.profile import Profile

        if profile:
            parts = Profile()
            with parts.watching(self.core.engine_core):
                turn = self.turn(work, chosen, concurrency, False, delays)
            turn.parts = parts.seconds
            return turn
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()
        self.passes = self.scheduled = self.blocks = 0
        self.times = {}
        memory = PeakMemory()
        run = _Run(self, chosen)
        waiting = list(reversed(work))
        begun, cpu = time.perf_counter(), time.process_time()
        while waiting or run.open:
            if delays is None:
                while waiting and len(run.open) < concurrency:
                    run.start(waiting.pop())
            else:
                while waiting and self._due(begun + delays[-len(waiting)], not run.open):
                    arrived = begun + delays[-len(waiting)]
                    run.start(waiting.pop(), begun=arrived)
            for output in self.llm.llm_engine.step():
                if output.finished:
                    run.finish(output)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        turn = Turn(
            seconds, len(run.alphas), run.tokens, run.ttft, run.itl, self.passes, self.scheduled
        )
        turn.blocks, turn.peak_bytes, turn.cpu_seconds = self.blocks, memory.peak(), cpu
        turn.alphas = [run.alphas[n] for n in sorted(run.alphas)]
        return turn

    def _due(self, moment: float, idle: bool) -> bool:
        """Whether a task begins by now; an idle engine waits for it."""
        late = time.perf_counter() - moment
        if late < 0 and idle:
            time.sleep(-late)
        return late >= 0 or idle


class _Run:
    """The conversations of one turn. open: vLLM's request id -> where that request stands."""

    def __init__(self, engine: Engine, chosen: System) -> None:
        self.engine, self.chosen = engine, chosen
        self.open: dict[str, tuple[Task, int, int, float, str, bool]] = {}
        self.started = self.tokens = 0
        self.alphas: dict[int, float | None] = {}
        self.ttft: list[float] = []
        self.itl: list[float] = []

    def start(self, task: Task, turn: int = 0, begun: float | None = None) -> None:
        """begun: when the request arrived; now, unless the engine was busy then."""
        number = self.started
        self.started += 1
        begun = time.perf_counter() if begun is None else begun
        self._send(task, turn, number, begun, probe=self.chosen.twice)

    def _send(
        self,
        task: Task,
        turn: int,
        number: int,
        begun: float,
        probe: bool,
        steering: SteeringParams | None = None,
    ) -> None:
        from vllm import SamplingParams

        if not self.chosen.twice:
            steering = self.chosen.steers(number)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1 if probe else task.max_tokens,
            ignore_eos=True,
            logprobs=1 if probe else None,
            extra_args=steering.extra_args() if steering else None,
        )
        messages: Any = task.messages(turn)
        (internal,) = self.engine.llm.enqueue_chat([messages], params, use_tqdm=False)
        # vLLM returns "NUMBER-RANDOM" here and calls the output by NUMBER.
        name = internal.partition("-")[0]
        self.open[name] = (task, turn, number, begun, internal, probe)

    def finish(self, output: Any) -> None:
        task, turn, number, begun, internal, probe = self.open.pop(output.request_id)
        times = self.engine.times.pop(internal)
        if probe:
            steering = self.chosen.steers(number)
            alpha = None
            if steering is not None:
                (best,) = output.outputs[0].logprobs
                top = max(entry.logprob for entry in best.values())
                alpha = alpha_of(steering, math.exp(top))
            self.alphas[number] = alpha
            second = ScalingVis(alpha) if alpha is not None else None
            self._send(task, turn, number, begun, False, second)
            return
        self.ttft.append(times[0] - begun)
        self.itl += [b - a for a, b in pairwise(times)]
        self.tokens += len(output.outputs[0].token_ids)
        report = getattr(output, "adaptvis", None)
        self.alphas.setdefault(number, report["alpha"] if report else None)
        if turn + 1 < len(task.questions):
            self.start(task, turn + 1)


class PeakMemory:
    """Most memory since it was made: of the GPU where there is one, else of the process."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda if torch.cuda.is_available() else None
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
            return
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:  # no Linux, or not allowed: the peak is of the process's whole life
            pass

    def peak(self) -> int:
        """In bytes; 0 where the system does not say."""
        if self.cuda:
            return self.cuda.max_memory_allocated()
        try:
            with open("/proc/self/status") as lines:
                return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))
        except (OSError, StopIteration):
            return 0
