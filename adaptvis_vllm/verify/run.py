"""One engine configuration through all steps, each in processes of its own.

A step that fails, or whose engine dies, is one failed line; the next goes on with new engines.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from adaptvis_vllm.bench.host import Host
from adaptvis_vllm.bench.systems import PLUGIN, REFERENCE, VANILLA
from adaptvis_vllm.engine.compilation import settle
from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.verify import cost, exact, graphs, itself, where
from adaptvis_vllm.verify.answers import Answer, allow_tf32, of_engine, of_reference
from adaptvis_vllm.verify.checks import Check, Configuration
from adaptvis_vllm.verify.questions import Ask, draw, steered

FP32 = ("CPU_ATTN", "TRITON_ATTN")  # backends that compute in it
HALF, TF32 = "bfloat16", "tf32"
ENGINES = 2  # on the machine at once: vLLM with the plugin and without
SMALL_CACHE = 2**30  # bytes; enough for all questions about a small model
Say = Callable[[str], None]


def configurations(args: Namespace, offered: Sequence[str]) -> list[tuple[str, str]]:
    """(backend, dtype) of each engine. ValueError for what this machine does not have."""
    wanted = args.backends or offered
    for name in wanted:
        if name not in offered:
            raise ValueError(f"--backends: {name!r} is not one of {', '.join(offered)}")
    out = []
    for name in wanted:
        dtypes = [args.dtype]
        if args.dtype == "auto":
            dtypes = ["float32", HALF] if name in FP32 else [HALF]
        elif args.dtype == "float32" and name not in FP32:
            continue
        out += [(name, dtype) for dtype in dtypes]
    if not out:
        raise ValueError(f"--dtype: {', '.join(wanted)} does not compute in {args.dtype}")
    return out


def options(args: Namespace, backend: str, dtype: str) -> dict[str, Any]:
    """Arguments of vLLM's `LLM`: the engine options that were given, and what is chosen here."""
    from vllm.engine.arg_utils import EngineArgs

    given, plain = vars(args), vars(args.plain)
    names = [f.name for f in fields(EngineArgs) if f.name in plain]
    out = {name: given[name] for name in names if given[name] != plain[name]}
    out |= {"model": args.model, "dtype": dtype, "use_tqdm_on_load": False}
    out.setdefault("limit_mm_per_prompt", {"image": 2})
    if backend == "CPU_ATTN":
        out.setdefault("block_size", 32)  # of 128 by default, more than a short prompt has
        out.setdefault("kv_cache_memory_bytes", SMALL_CACHE)
        return settle(out)
    out["attention_backend"] = backend
    if args.small:
        out.setdefault("kv_cache_memory_bytes", SMALL_CACHE)
    else:
        out.setdefault("max_model_len", -1)  # what fits
    out.setdefault("gpu_memory_utilization", round(0.9 / ENGINES, 2))
    return out


class Hosts:
    """The engines of one configuration, started when they are first asked."""

    def __init__(self, engine_options: dict[str, Any]) -> None:
        self.options = engine_options
        self._running: dict[str, Host] = {}

    def begin(self, *kinds: str) -> None:
        """Start some, without waiting for them."""
        for kind in kinds:
            if kind not in self._running:
                self._running[kind] = Host(kind, self.options)

    def of(self, kind: str) -> Host:
        self.begin(kind)
        self._running[kind].wait()
        return self._running[kind]

    def call(self, kind: str, function: Callable[..., Any], *args: Any) -> Any:
        return self.of(kind).call(function, *args)

    def close(self) -> None:
        for host in self._running.values():
            host.close()
        self._running = {}


class References:
    """Answers of plain transformers, asked once for all configurations."""

    def __init__(self, model: str, asks: Sequence[Ask]) -> None:
        self.model, self.asks = model, asks
        self.ways: dict[str, SteeringParams | None] = {}
        self.threshold = 0.5
        self._known: dict[str, dict[str, list[Answer]]] = {}

    def of(self, dtype: str) -> dict[str, list[Answer]]:
        """By way. dtype: of torch, or `TF32`. float32 must be asked for first: its confidences
        settle the ways."""
        if dtype not in self._known:
            torch_dtype = "float32" if dtype == TF32 else dtype
            host = Host(REFERENCE, {"model": self.model, "dtype": torch_dtype})
            try:
                host.wait()
                host.call(allow_tf32, dtype == TF32)
                given = {
                    way: host.call(of_reference, steered(self.asks, steering), itself.TOKENS)
                    for way, steering in exact.GIVEN.items()
                }
            finally:
                host.close()
            if not self.ways:
                self.threshold = exact.threshold(given[exact.UNSTEERED])
                self.ways = exact.ways(self.threshold)
            # In 16 bit by the confidences in fp32: rounding must not change the question.
            base = self._known.get("float32", given)[exact.UNSTEERED]
            self._known[dtype] = exact.with_choice(given, base, self.threshold)
        return self._known[dtype]

    def rounded(self, backend: str, dtype: str) -> dict[str, list[Answer]] | None:
        """As of an engine's arithmetic: in 16 bit, or on a GPU in fp32 with TF32, in which its
        kernels multiply. None on a CPU in fp32."""
        if dtype == "float32":
            return None if backend == "CPU_ATTN" else self.of(TF32)
        return self.of(dtype)


def configuration(
    args: Namespace, backend: str, dtype: str, references: References, say: Say
) -> Configuration:
    """All steps that were asked for."""
    hosts = Hosts(options(args, backend, dtype))
    found = Configuration(backend, dtype, {}, [])
    asks = draw(args.questions)
    noise = 0.0
    say(f"\n{found.title}")

    def told(checks: Sequence[Check]) -> None:
        found.checks.extend(checks)
        for check in checks:
            say(check.line())

    def exact_step() -> list[Check]:
        nonlocal noise
        if args.load_format == "dummy":
            sentence = "not tried: dummy weights have no reference"
            return [Check("exact", "against transformers", None, sentence)]
        base = references.of("float32")
        rounded = references.rounded(backend, dtype)
        mine = {
            way: hosts.call(PLUGIN, itself.fresh, steered(asks, steering))
            for way, steering in references.ways.items()
        }
        checks, noise = exact.compare(mine, base, rounded, dtype)
        return checks

    def itself_step() -> list[Check]:
        vanilla = hosts.call(VANILLA, itself.bystanders, asks)
        return hosts.call(PLUGIN, itself.run, asks, vanilla, noise, dtype)

    def graphs_step() -> list[Check]:
        return hosts.call(PLUGIN, graphs.run, asks, hosts.call(VANILLA, graphs.modes, asks))

    def cost_step() -> list[Check]:
        few = backend == "CPU_ATTN"
        checks = cost.measure(lambda kind, _: hosts.of(kind), 16 if few else 64, 3)
        (one,) = hosts.call(PLUGIN, of_engine, asks[:1], 1)
        return checks + hosts.call(PLUGIN, cost.row_kernel, len(one.prompt))

    steps = {
        "exact": exact_step,
        "itself": itself_step,
        "graphs": graphs_step,
        "cost": cost_step,
    }
    try:
        # Side by side, unless an engine measures a GPU's free memory as it starts.
        if "kv_cache_memory_bytes" in hosts.options:
            hosts.begin(PLUGIN, *((VANILLA,) if set(args.steps) != {"exact"} else ()))
        for name in args.steps:
            try:
                told(steps[name]())
            except RuntimeError as error:
                told([Check(name, "ran to its end", False, str(error))])
                hosts.close()
            else:
                found.facts = found.facts or hosts.call(PLUGIN, where.engine)
    finally:
        hosts.close()
    return found
