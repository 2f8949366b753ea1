"""The command line's steering options, the same for every command that takes defaults."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from adaptvis_vllm.params import SteeringParams

_NUMBERS = ("alpha", "alpha_low", "alpha_high", "threshold")


def add_steering(parser: argparse.ArgumentParser, title: str, mode: str = "--mode") -> None:
    """One option a field of `SteeringParams`; `mode` is the name of that field's."""
    group = parser.add_argument_group(title)
    for field in fields(SteeringParams):
        group.add_argument(
            mode if field.name == "mode" else "--" + field.name.replace("_", "-"),
            dest=f"steering_{field.name}",
            metavar=field.name.upper(),
            type=float if field.name in _NUMBERS else str,
        )


def take_steering(args: argparse.Namespace) -> dict[str, Any]:
    """The given fields, checked and removed from `args`; ValueError names a wrong one."""
    values: dict[str, Any] = {}
    for field in fields(SteeringParams):
        value = vars(args).pop(f"steering_{field.name}")
        if value is None:
            continue
        if field.name == "confidence_decimals" and value.lstrip("-").isdigit():
            value = int(value)
        values[field.name] = value
    SteeringParams.from_dict(values)
    return values
