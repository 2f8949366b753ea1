"""A setting as a file: `adaptvis calibrate` writes it, `--preset FILE` and servers read it.

    {"adaptvis": {"mode": "adaptive", "alpha_low": 0.5, ...}, "calibration": {...}}

`adaptvis` holds request parameters without prefix; `calibration`, which may be left out, says
where they come from and is not read. Such a file's content is also a valid
`additional_config` of vLLM. Import-light: no torch, no vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from adaptvis_vllm.files.lines import dumps, loads
from adaptvis_vllm.steering.fields import PRESETS
from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.steering.words import nearest, show

PARAMETERS, ABOUT = "adaptvis", "calibration"


def write_preset(path: Path, params: SteeringParams, about: Mapping[str, Any]) -> None:
    """about: where the setting comes from, for JSON."""
    content = {PARAMETERS: _values(params), ABOUT: dict(about)}
    path.write_bytes(dumps(content, indent=1) + b"\n")


def read_preset(path: str | Path) -> SteeringParams:
    """The checked setting; ValueError, which names the file, for anything else in it."""
    try:
        content = loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"preset file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"preset file {path} {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get(PARAMETERS), dict):
        raise ValueError(f'preset file {path} must hold {{"{PARAMETERS}": {{...}}}}')
    for name in content:
        if name not in (PARAMETERS, ABOUT):
            raise ValueError(
                f"preset file {path} has the unknown field {name!r}; known are "
                f"{PARAMETERS}, {ABOUT}"
            )
    try:
        params = SteeringParams.from_dict(content[PARAMETERS])
    except ValueError as error:
        raise ValueError(f"preset file {path}: {error}") from None
    if params is None:
        raise ValueError(f"preset file {path}: {PARAMETERS} is empty")
    return params


def expand(values: Mapping[str, Any]) -> dict[str, Any]:
    """Steering fields with a `preset` that is a file, or `heads` that name one, replaced by what
    the file holds.

    values: fields without prefix, from an operator: options of a command, or
    `additional_config`; never a request's, which may not make the server read files. Fields
    beside `preset` win over the file's. Published names stay. ValueError for a bad file.
    """
    preset = values.get("preset")
    if isinstance(values.get("heads"), str | Path) and ".json" in str(values["heads"]):
        values = {**values, "heads": ranked_heads(str(values["heads"]))}
    if not isinstance(preset, str | Path) or preset in PRESETS:
        return dict(values)
    if not Path(preset).is_file():
        raise ValueError(
            f"preset must be a file or one of {', '.join(PRESETS)}, not {show(str(preset))}"
            f"{nearest(str(preset), PRESETS, '')}"
        )
    others = {k: v for k, v in values.items() if k != "preset" and v is not None}
    held = _values(read_preset(preset))
    for name, instead in (("layers", "heads"), ("heads", "layers")):
        if name in others:
            held.pop(instead, None)
    return held | others


def ranked_heads(text: str) -> list[str]:
    """The first heads of a ranking, "FILE:16", or all of it, "FILE".

    Such a file holds {"heads": ["17.3", ...]}, best first, as `adaptvis diagnose` writes it.
    ValueError, which names the file, for anything else.
    """
    path, colon, count = text.rpartition(":")
    if not colon or not count.isdigit():
        path, count = text, ""
    try:
        heads = loads(Path(path).read_bytes())["heads"]
        if not heads or not all(isinstance(head, str) for head in heads):
            raise TypeError
    except OSError as error:
        raise ValueError(f"heads: {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f'heads: {path} must hold {{"heads": ["17.3", ...]}}, the best first'
        ) from None
    if count and not 1 <= int(count) <= len(heads):
        raise ValueError(f"heads: {path} ranks 1 to {len(heads)} heads, not {count}")
    return heads[: int(count)] if count else heads


def _values(params: SteeringParams) -> dict[str, Any]:
    """The fields that the mode uses and that have a value."""
    if params.mode == "off":
        return {"mode": "off"}
    unused = ("confidence",) if params.mode == "scaling" else ()
    held = {f.name: getattr(params, f.name) for f in fields(params) if f.name not in unused}
    return {name: value for name, value in held.items() if value is not None}
