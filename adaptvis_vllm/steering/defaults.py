"""Steering of requests that do not say otherwise: in vLLM's `additional_config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.steering.preset import expand

OPTION = "adaptvis"  # the key in vLLM's additional_config


def server_defaults(vllm_config: Any) -> SteeringParams | None:
    """The server-wide defaults, `additional_config={"adaptvis": {...}}`; ValueError if wrong.

    Their `preset` may be a file, see `preset.expand`.
    """
    values = (vllm_config.additional_config or {}).get(OPTION)
    if values is None:
        return None
    try:
        return SteeringParams.from_dict(expand(values) if isinstance(values, Mapping) else values)
    except ValueError as error:
        raise ValueError(f"additional_config['{OPTION}']: {error}") from None


def steered_config(additional_config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's `additional_config` with steering defaults; preset files are replaced by content.

    given: fields without prefix. ValueError for a wrong one, and where both have some.
    """
    config = dict(additional_config or {})
    if given and config.get(OPTION) is not None:
        raise ValueError("steering is given twice: in --additional-config and as options")
    if given:
        config[OPTION] = expand(given)
        SteeringParams.from_dict(config[OPTION])
    elif config.get(OPTION) is not None:
        try:
            if isinstance(config[OPTION], Mapping):
                config[OPTION] = expand(config[OPTION])
            SteeringParams.from_dict(config[OPTION])
        except ValueError as error:
            raise ValueError(f"--additional-config: {error}") from None
    return config
