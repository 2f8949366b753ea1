"""What an operator says of an engine: `additional_config={"adaptvis": {...}}` of vLLM.

Defaults for requests, fields of `SteeringParams`, whose `preset` may be a file (`preset.expand`);
and limits: `max_candidates`, how many candidates a request may have, and `max_map_bytes`, how large
its attention maps may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptvis_vllm.steering.fields import CANDIDATES_MAX
from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.steering.preset import expand
from adaptvis_vllm.steering.words import BadParameter, show

OPTION = "adaptvis"  # the key in vLLM's additional_config
MAX_CANDIDATES = "max_candidates"
MAX_MAP_BYTES = "max_map_bytes"
MAP_BYTES = 64 * 2**20
ROWS = 2  # side rows that every request has room for: adaptive steering's


@dataclass(frozen=True)
class OperatorOptions:
    """params: the steering of requests that do not say otherwise. max_candidates: how many a
    request may have. max_map_bytes: how large its attention maps may be."""

    params: SteeringParams | None
    max_candidates: int
    max_map_bytes: int


def server_defaults(vllm_config: Any) -> SteeringParams | None:
    """The steering of requests that do not say otherwise; ValueError if wrong."""
    return operator_options(vllm_config).params


def max_candidates(vllm_config: Any) -> int:
    """How many candidates a request may have; ValueError if wrong."""
    return operator_options(vllm_config).max_candidates


def operator_options(vllm_config: Any) -> OperatorOptions:
    """Of an engine; ValueError if wrong."""
    values = (vllm_config.additional_config or {}).get(OPTION)
    try:
        return parse({} if values is None else values)
    except ValueError as error:
        raise ValueError(f"additional_config['{OPTION}']: {error}") from None


def parse(values: Any) -> OperatorOptions:
    """Of one such object; BadParameter names the field.

    Left out, there is room for `ROWS` candidates, or for as many as the defaults have.
    """
    most = map_bytes = None
    if isinstance(values, Mapping):
        values = expand(values)
        most = _limit(values, MAX_CANDIDATES, CANDIDATES_MAX)
        map_bytes = _limit(values, MAX_MAP_BYTES, 2**40)
    params = SteeringParams.from_dict(values)
    own = len(params.candidates or ()) if params else 0
    return OperatorOptions(
        params,
        max(own, ROWS if most is None else most),
        MAP_BYTES if map_bytes is None else map_bytes,
    )


def _limit(values: dict[str, Any], name: str, largest: int) -> int | None:
    """A limit, taken out of the values; None where it is not given."""
    limit = values.pop(name, None)
    whole = isinstance(limit, int) and not isinstance(limit, bool)
    if limit is not None and not (whole and 1 <= limit <= largest):
        raise BadParameter(
            f"{name} must be a whole number from 1 to {largest}, not {show(limit)}", name
        )
    return limit


def check_candidates(params: SteeringParams, most: int, prefix: str) -> None:
    """BadParameter for more candidates than an engine has room for."""
    count = len(params.candidates or ())
    if count > most:
        raise BadParameter(
            f"{prefix}candidates must be 1 to {most} alphas, not {count}: more need an engine "
            f"with {MAX_CANDIDATES} of at least {count} (--max-candidates, or in "
            f"additional_config['{OPTION}'])",
            "candidates",
        )


def steered_config(additional_config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's `additional_config` with steering defaults; preset files are replaced by content.

    given: fields without prefix. ValueError for a wrong one, and where both have some.
    """
    config = dict(additional_config or {})
    held = config.get(OPTION)
    beside = {MAX_CANDIDATES, MAX_MAP_BYTES, "maps", "maps_tokens"}
    if held is not None and set(given) - beside:
        raise ValueError("steering is given twice: in --additional-config and as options")
    if held is not None:
        try:
            config[OPTION] = expand(held) if isinstance(held, Mapping) else held
            parse(config[OPTION])
        except ValueError as error:
            raise ValueError(f"--additional-config: {error}") from None
    if given:
        config[OPTION] = expand({**config.get(OPTION, {}), **given})
        parse(config[OPTION])
    return config
