"""Offline runs: systems in turn, A B C A B C, on the same requests in each round."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from adaptvis_vllm.bench.systems import REFERENCE, System
from adaptvis_vllm.bench.turns import Turn
from adaptvis_vllm.bench.workloads import Workload, arrivals, tasks

WARM_UP = 2


class Engines:
    """The processes that systems need, one for each kind, started when first asked for.

    make: from a kind and the engine's options to one with `wait` and `close`.
    """

    def __init__(self, make: Callable[[str, dict[str, Any]], Any], options: dict[str, Any]) -> None:
        self.make, self.options = make, options
        self._running: dict[str, Any] = {}

    def start(self, systems: Sequence[System]) -> None:
        """All that are missing: together on a CPU; on a GPU, whose free memory an engine
        measures as it starts, one after the other."""
        import torch

        for kind in dict.fromkeys(s.host for s in systems):
            if kind not in self._running:
                self._running[kind] = self.make(kind, self.options)
                if torch.cuda.is_available():
                    self._running[kind].wait()
        for one in self._running.values():
            one.wait()

    def of(self, chosen: System) -> Any:
        return self._running[chosen.host]

    def close(self) -> None:
        for one in self._running.values():
            one.close()
        self._running = {}


def in_turn(
    engines: Engines, systems: Sequence[System], rounds: int, launches: int
) -> Iterator[tuple[int, Sequence[System]]]:
    """Each round and its systems, A B C C B A, so that none is always first; round -1 warms up.

    Engines that are alike differ in speed as long as they live, on a CPU by some percent, probably
    by where their memory lies: each launch is `rounds` rounds with engines of its own.
    """
    for number in range(rounds * launches):
        if number % rounds == 0:
            if number:
                engines.close()
            engines.start(systems)
            yield -1, systems
        yield number, systems[:: -1 if number % 2 else 1]


def run(
    hosts: Engines,
    systems: Sequence[System],
    chosen: Workload,
    *,
    requests: int,
    concurrency: int,
    rounds: int,
    launches: int = 1,
    rate: float | None = None,
    seed: int = 0,
    reference_requests: int = 2,
    profile: bool = False,
) -> dict[str, list[Turn]]:
    """Turns by system, one per round of each launch. hosts: of `host.Host`s.

    Every round has pictures of its own, the same for all systems. The reference answers one
    request at a time, so it is given `reference_requests` of the round's. rate: requests/s
    that arrive, a Poisson process, the same in each round for all systems; None: `concurrency`
    at once.
    """
    turns: dict[str, list[Turn]] = {s.name: [] for s in systems}
    for number, order in in_turn(hosts, systems, rounds, launches):
        count = requests if number >= 0 else min(requests, WARM_UP)
        work = tasks(chosen, count, 1000 * seed + number + 1)
        for system in order:
            mine = work if system.host != REFERENCE else work[:reference_requests]
            delays = arrivals(len(mine), rate, number) if rate else None
            turn = hosts.of(system).turn(mine, system, concurrency, profile, delays)
            if number >= 0:
                turns[system.name].append(turn)
                say_round(number, rounds * launches, system, turn)
    return turns


def say_round(number: int, rounds: int, system: System, turn: Turn) -> None:
    say(f"round {number + 1}/{rounds} {system.name:<12} {turn.rate:8.3f} requests/s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
