"""What `adaptvis eval` compares: no steering, ScalingVis and AdaptVis."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from adaptvis_vllm.evaluation.datasets.question import Benchmark
from adaptvis_vllm.options import given_steering
from adaptvis_vllm.steering.fields import ADAPTIVE_PRESETS, SCALING_PRESETS
from adaptvis_vllm.steering.params import Off, SteeringParams

BASE, SCALING, ADAPTIVE = "base", "scaling", "adaptive"
METHODS = (BASE, SCALING, ADAPTIVE)
ORACLE = "oracle"  # of answers under several alphas: always picks the right one
TITLES = {BASE: "base", SCALING: "ScalingVis", ADAPTIVE: "AdaptVis", ORACLE: "oracle"}
_NEEDS = {SCALING: ("alpha",), ADAPTIVE: ("alpha_low", "alpha_high", "threshold")}
_NUMBERS = tuple(name for names in _NEEDS.values() for name in names)
_PRESETS: dict[str, Mapping[str, Any]] = {SCALING: SCALING_PRESETS, ADAPTIVE: ADAPTIVE_PRESETS}


def chosen_methods(args: Namespace, benchmark: Benchmark) -> dict[str, SteeringParams]:
    """Steering by method, in the order of METHODS; base is always there.

    --methods says which; left out, those for which the options (a preset file among them), or
    else the benchmark's published preset, give a setting. ValueError for one that has none.
    """
    given = given_steering(args)
    given.pop("mode", None)  # a preset file's; it follows from the numbers
    if args.preset is None and not any(name in given for name in _NUMBERS):
        given |= {"preset": benchmark.preset} if benchmark.preset else {}
    wanted = _wanted(args.methods)
    out = {BASE: Off()}
    for method, needs in _NEEDS.items():
        own = {n: v for n, v in given.items() if n not in _NUMBERS or n in needs}
        if method == SCALING:
            own.pop("options", None)  # it has no confidence
        if own.get("preset") not in _PRESETS[method]:
            own.pop("preset", None)
        possible = "preset" in own or any(name in own for name in needs)
        if possible and (not wanted or method in wanted):
            out[method] = SteeringParams.from_dict({"mode": method, **own}) or Off()
        elif method in wanted:
            options = ", ".join("--" + name.replace("_", "-") for name in needs)
            raise ValueError(f"--methods {method} needs a setting: {options}, or --preset")
    return out


def _wanted(text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if name not in METHODS:
            raise ValueError(f"--methods must be among {', '.join(METHODS)}, not {name!r}")
    return names
