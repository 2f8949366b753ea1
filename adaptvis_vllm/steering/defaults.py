"""What an operator says of an engine: `additional_config={"adaptvis": {...}}` of vLLM.

Defaults for requests, fields of `SteeringParams`, whose `preset` may be a file (`preset.expand`);
and `max_candidates`, how many candidates a request may have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptvis_vllm.steering.fields import CANDIDATES_MAX, BadParameter, show
from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.steering.preset import expand

OPTION = "adaptvis"  # the key in vLLM's additional_config
MAX_CANDIDATES = "max_candidates"
ROWS = 2  # side rows that every request has room for: adaptive steering's


def server_defaults(vllm_config: Any) -> SteeringParams | None:
    """The steering of requests that do not say otherwise; ValueError if wrong."""
    return operator_options(vllm_config)[0]


def max_candidates(vllm_config: Any) -> int:
    """How many candidates a request may have; ValueError if wrong."""
    return operator_options(vllm_config)[1]


def operator_options(vllm_config: Any) -> tuple[SteeringParams | None, int]:
    """Both of the above, read once."""
    values = (vllm_config.additional_config or {}).get(OPTION)
    try:
        return parse({} if values is None else values)
    except ValueError as error:
        raise ValueError(f"additional_config['{OPTION}']: {error}") from None


def parse(values: Any) -> tuple[SteeringParams | None, int]:
    """(defaults, most candidates) of one such object; BadParameter names the field.

    Left out, there is room for `ROWS` candidates, or for as many as the defaults have.
    """
    most = None
    if isinstance(values, Mapping):
        values = expand(values)
        most = values.pop(MAX_CANDIDATES, None)
        whole = isinstance(most, int) and not isinstance(most, bool)
        if most is not None and not (whole and 1 <= most <= CANDIDATES_MAX):
            raise BadParameter(
                f"{MAX_CANDIDATES} must be a whole number from 1 to {CANDIDATES_MAX}, "
                f"not {show(most)}",
                MAX_CANDIDATES,
            )
    params = SteeringParams.from_dict(values)
    own = len(params.candidates or ()) if params else 0
    return params, max(own, ROWS if most is None else most)


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
    if held is not None and set(given) - {MAX_CANDIDATES}:
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
