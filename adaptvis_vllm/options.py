"""Options that several commands share: vLLM's engine options, and steering."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from adaptvis_vllm.fields import CONFIDENCES, MODES, PRESETS, SPANS
from adaptvis_vllm.params import SteeringParams
from adaptvis_vllm.preset import expand

_NUMBERS = ("alpha", "alpha_low", "alpha_high", "threshold")
STEERING = (
    "mode",
    *_NUMBERS,
    "preset",
    "layers",
    "confidence",
    "confidence_decimals",
    "span",
)


def engine_parser(prog: str, description: str) -> Any:
    """A parser for a command with an in-process engine; it takes `--config` files as vLLM's."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return FlexibleArgumentParser(
        prog=prog, description=f"{description} All engine options of vLLM are accepted."
    )


def engine_options(parser: Any) -> None:
    """Add all of vLLM's engine options; --model has no default."""
    from vllm.engine.arg_utils import EngineArgs

    EngineArgs.add_cli_args(parser)
    parser.set_defaults(model=None)


def make_llm(args: Namespace, **overrides: Any) -> Any:
    """The `LLM` that the engine options describe; overrides replace some of them.

    On a CPU its KV cache takes a quarter of the free memory unless an option says otherwise.
    ValueError if there is no model.
    """
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    from adaptvis_vllm.offline import cache_bytes

    if args.model is None:
        raise ValueError("--model is needed")
    values = {
        **vars(args),
        "kv_cache_memory_bytes": cache_bytes(args.kv_cache_memory_bytes),
        **overrides,
    }
    return LLM.from_engine_args(EngineArgs.from_cli_args(Namespace(**values)))


def steering_options(parser: Any, title: str, *, mode: bool = True) -> None:
    """Add the options named in STEERING, as a group; each is None if it is not given.

    mode: whether there is --mode.
    """
    group = parser.add_argument_group(title)
    if mode:
        group.add_argument("--mode", choices=MODES)
    else:
        parser.set_defaults(mode=None)
    for name in _NUMBERS:
        group.add_argument("--" + name.replace("_", "-"), type=float)
    group.add_argument("--preset", help=f"file of `calibrate`, or {', '.join(PRESETS)}")
    group.add_argument("--layers", help="such as 0-31; default all")
    group.add_argument("--confidence", choices=CONFIDENCES, help="default max_prob")
    group.add_argument("--confidence-decimals", type=int, help="default: no rounding")
    group.add_argument("--span", choices=SPANS, help="default embeddings")


def given_steering(args: Namespace) -> dict[str, Any]:
    """The steering options that were given; a preset file is replaced by what it holds."""
    return expand({n: getattr(args, n) for n in STEERING if getattr(args, n) is not None})


def steered_config(additional_config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's `additional_config` with steering defaults; preset files are replaced by content.

    given: fields without prefix. ValueError for a wrong one, and where both have some.
    """
    from adaptvis_vllm.admission import OPTION

    config = dict(additional_config or {})
    if given:
        if config.get(OPTION) is not None:
            raise ValueError("steering is given twice: in --additional-config and as options")
        config[OPTION] = expand(given)
        SteeringParams.from_dict(config[OPTION])
    elif isinstance(config.get(OPTION), Mapping):
        config[OPTION] = expand(config[OPTION])
    return config
