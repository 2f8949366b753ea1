"""Options that several commands share: vLLM's engine options, and steering.

Imports `engine.compilation` and `steering`; no command.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptvis_vllm.engine.compilation import SWITCHES, settle
from adaptvis_vllm.steering.defaults import MAX_CANDIDATES, MAX_MAP_BYTES, OPTION, steered_config
from adaptvis_vllm.steering.fields import CONFIDENCES, MODES, PRESETS, ROWS, RULES, SPANS
from adaptvis_vllm.steering.preset import expand

STEERING = (
    "mode",
    "alpha",
    "alpha_low",
    "alpha_high",
    "threshold",
    "preset",
    "rule",
    "layers",
    "heads",
    "images",
    "videos",
    "boxes",
    "rows",
    "confidence",
    "confidence_decimals",
    "span",
    "options",
    "candidates",
    MAX_CANDIDATES,
    "maps",
    "maps_tokens",
    MAX_MAP_BYTES,
)
_OPTIONS = {"maps": "--map-layers", "maps_tokens": "--map-tokens"}  # --maps is a folder
_OF_ANSWERS = ("candidates", MAX_CANDIDATES, "maps", "maps_tokens", MAX_MAP_BYTES)
_HELP = {
    "mode": ", ".join(MODES),
    "preset": f"file of `calibrate`, or {', '.join(PRESETS)}",
    "rule": f"{', '.join(RULES)}; default multiply",
    "layers": "such as 0-31; default all",
    "heads": "layer.head such as 17.3,20.0-7,25.*, instead of layers; or a ranking of `diagnose`, "
    "heads.json:16 for its first 16",
    "images": "which pictures of a prompt, such as 0 or 0,2; default all",
    "videos": "which videos of a prompt; default all",
    "boxes": "regions of a picture in pixels, x0,y0,x1,y1 of each; default the whole picture",
    "rows": f"{', '.join(ROWS)}; default last",
    "confidence": f"{', '.join(CONFIDENCES)}; default max_prob",
    "confidence_decimals": "default: no rounding",
    "span": f"{', '.join(SPANS)}; default embeddings",
    "options": "answers over which the confidence is taken, such as Left,Right",
    "candidates": "alphas to report the best first token of, such as 0.5,1.5; no steering",
    MAX_CANDIDATES: "most candidates of a request; default 2",
    "maps": "layers whose attention maps come with answers, such as 12-20, or all",
    "maps_tokens": "maps of so many generated tokens too",
    MAX_MAP_BYTES: "largest maps of a request; default 67108864",
}


def check_apart(output: Path, *inputs: Path) -> None:
    """ValueError if writing the output would replace an input."""
    for path in inputs:
        if path.exists() and output.exists() and output.samefile(path):
            raise ValueError(f"the output {output} is the input")


def engine_parser(prog: str, description: str) -> Any:
    """A parser for a command with an in-process engine; it takes `--config` files as vLLM's."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return FlexibleArgumentParser(
        prog=prog, description=f"{description} All engine options of vLLM are accepted."
    )


def engine_options(parser: Any) -> None:
    """Add all of vLLM's engine options; --model and `compilation.SWITCHES` have no default."""
    from vllm.engine.arg_utils import EngineArgs

    EngineArgs.add_cli_args(parser)
    parser.set_defaults(model=None, **dict.fromkeys(SWITCHES))


def make_llm(args: Namespace, **overrides: Any) -> Any:
    """The `LLM` that the engine options describe; overrides replace some of them.

    On a CPU it is eager, and its KV cache takes a quarter of the free memory, unless an option
    says otherwise. ValueError if there is no model.
    """
    if args.model is None:
        raise ValueError("--model is needed")
    settled = settle(vars(args))
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    values = {
        **settled,
        "kv_cache_memory_bytes": cache_bytes(args.kv_cache_memory_bytes),
        **overrides,
    }
    return LLM.from_engine_args(EngineArgs.from_cli_args(Namespace(**values)))


def cache_bytes(given: int | None, share: float = 0.25) -> int | None:
    """`kv_cache_memory_bytes` of an engine: as given; on a CPU else a share of the free memory.

    At most 16 GiB; vLLM itself wants nearly all of a CPU machine's. None leaves it to vLLM: on
    a GPU, or where VLLM_CPU_KVCACHE_SPACE says it.
    """
    import psutil
    from vllm.platforms import current_platform

    if given is not None or "VLLM_CPU_KVCACHE_SPACE" in os.environ or not current_platform.is_cpu():
        return given
    return min(int(psutil.virtual_memory().available * share), 16 * 2**30)


def steering_options(parser: Any, title: str, *, mode: str | None = "--mode") -> None:
    """Add the options named in STEERING, as a group; each is None if it is not given.

    mode: the name of that field's option, None for none, and then none for candidates and maps
        either.
    """
    group = parser.add_argument_group(title)
    for name in STEERING:
        option = mode if name == "mode" else _OPTIONS.get(name, "--" + name.replace("_", "-"))
        if option is None or (mode is None and name in _OF_ANSWERS):
            parser.set_defaults(**{name: None})
        else:
            _add(group, name, option)


def _add(group: Any, name: str, option: str) -> None:
    group.add_argument(
        option, dest=name, metavar=name.upper(), type=_TYPES.get(name, str), help=_HELP.get(name)
    )


_MAPS = ("maps", "maps_tokens", MAX_MAP_BYTES)


def map_options(parser: Any, *, folder_alone: bool = False, limit: bool = True) -> None:
    """Add --maps, whose value is `map_folder`, and what goes with it.

    folder_alone: `steering_options` has added the rest. limit: with --max-map-bytes.
    """
    group = parser.add_argument_group("attention maps")
    group.add_argument(
        "--maps",
        dest="map_folder",
        type=Path,
        metavar="FOLDER",
        help="write the attention maps of each row, ID.npz; of all layers unless it is said",
    )
    for name in () if folder_alone else _MAPS if limit else _OPTIONS:
        _add(group, name, _OPTIONS.get(name, "--max-map-bytes"))


def mapped_config(args: Namespace, given: Mapping[str, Any]) -> dict[str, Any]:
    """`additional_config` of an engine whose rows have maps, see `steered_config`.

    args: --additional-config and --maps. given: steering options. ValueError for options of maps
    without a folder for them.
    """
    names = [name for name in _OPTIONS if name in given]
    if names and args.map_folder is None:
        raise ValueError(f"{_OPTIONS[names[0]]} needs --maps FOLDER")
    held = (args.additional_config or {}).get(OPTION) or {}
    if args.map_folder is not None and "maps" not in {*held, *given}:
        given = {**given, "maps": "all"}
    return steered_config(args.additional_config, given)


def _decimals(text: str) -> int | str:
    """A number where it is one: `SteeringParams` refuses the rest, but for "none"."""
    return int(text) if text.lstrip("-").isdigit() else text


_TYPES: dict[str, Any] = {
    "alpha": float,
    "alpha_low": float,
    "alpha_high": float,
    "threshold": float,
    "confidence_decimals": _decimals,
    MAX_CANDIDATES: int,
    "maps_tokens": int,
    MAX_MAP_BYTES: int,
}


def given_steering(args: Namespace) -> dict[str, Any]:
    """The steering options that were given; a preset file is replaced by what it holds."""
    given = {name: getattr(args, name, None) for name in STEERING}
    return expand({name: value for name, value in given.items() if value is not None})
