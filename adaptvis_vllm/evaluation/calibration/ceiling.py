"""What choosing among alphas could reach at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.stats import Interval, interval, paired
from adaptvis_vllm.evaluation.table import SweepTable


@dataclass(frozen=True)
class Ceiling:
    """Of an oracle that gives each question an alpha under which it is answered best.

    accuracy, gain: the oracle's; the gain over the unsteered answers is paired. reached: the
    part of that gain that a policy has; None where there is nothing to gain.
    """

    accuracy: Interval
    gain: Interval
    reached: float | None


def oracle(table: SweepTable) -> NDArray[np.float64]:
    """[Q] scores of the best alpha of each question."""
    return table.scores.max(axis=1)


def ceiling(table: SweepTable, policy: NDArray[Any]) -> Ceiling:
    """policy: [Q] scores of the setting that is compared."""
    best, base = oracle(table), table.scores[:, table.plain]
    room = float(best.mean() - base.mean())
    reached = float(policy.mean() - base.mean()) / room if room > 0 else None
    return Ceiling(interval(best), paired(base, best), reached)


def sentence(found: Ceiling, alphas: str, policy: str) -> str:
    """alphas: the oracle's choice. policy: the compared setting's name."""
    text = (
        f"An oracle that always picks the right one of alpha {alphas} answers "
        f"{100 * found.accuracy.value:.1f}% rightly"
    )
    if found.reached is None:
        return f"{text}, as many as no steering: there is nothing to gain."
    return (
        f"{text}, {100 * found.gain.value:+.1f} points; {policy} reaches "
        f"{100 * found.reached:.0f}% of that gain."
    )
