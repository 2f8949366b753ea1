"""Offline runs: systems in turn, A B C A B C, on the same requests in each round."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from adaptvis_vllm.bench.figures import Turn
from adaptvis_vllm.bench.host import Host
from adaptvis_vllm.bench.systems import REFERENCE, System
from adaptvis_vllm.bench.workloads import Workload, tasks

WARM_UP = 2


class Hosts:
    """The processes that the systems need, started when first asked for."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self._hosts: dict[str, Host] = {}

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()

    def of(self, chosen: System) -> Host:
        if chosen.host not in self._hosts:
            self._hosts[chosen.host] = Host(chosen.host, self.options)
        return self._hosts[chosen.host]


def run(
    hosts: Hosts,
    systems: Sequence[System],
    chosen: Workload,
    *,
    requests: int,
    concurrency: int,
    rounds: int,
    seed: int = 0,
    reference_requests: int = 2,
    profile: bool = False,
) -> dict[str, list[Turn]]:
    """Turns by system, one per round.

    Every round has pictures of its own, the same for all systems; every other round goes
    through the systems backwards, so that none is always first. The first turn of each
    system is not counted: it warms up. The reference answers one request at a time, so it is
    given `reference_requests` of the round's.
    """
    turns: dict[str, list[Turn]] = {s.name: [] for s in systems}
    for number in range(-1, rounds):
        work = tasks(chosen, requests, 1000 * seed + number + 1)
        for system in systems[:: -1 if number % 2 else 1]:
            mine = work if system.host != REFERENCE else work[:reference_requests]
            mine = mine if number >= 0 else mine[:WARM_UP]
            turn = hosts.of(system).turn(mine, system, concurrency, profile)
            if number >= 0:
                turns[system.name].append(turn)
                say(f"round {number + 1}/{rounds} {system.name:<12} {turn.rate:8.3f} requests/s")
    return turns


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
