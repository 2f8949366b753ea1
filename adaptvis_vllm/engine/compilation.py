"""Compilation on a CPU: off unless the user asks for it, in options and environment alike.

vLLM compiles there by default too, a minute or more of a first start. Eager mode alone still
compiles samplers in the first requests, for seconds; TORCHDYNAMO_DISABLE=1 alone stops vLLM with
"aot_compile is not supported". So both are set, or neither is. On a GPU all is left to vLLM.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

VARIABLE = "TORCHDYNAMO_DISABLE"
SWITCHES = ("enforce_eager", "optimization_level")  # with the mode of compilation_config


def asked(options: Mapping[str, Any]) -> bool | None:
    """Whether engine options ask for compilation (True), for eager mode (False), or for neither.

    options: arguments of vLLM's `LLM`; None stands for one that was not given.
    """
    eager, level = (options.get(name) for name in SWITCHES)
    if eager:
        return False
    config = options.get("compilation_config")
    mode = config if isinstance(config, int) else getattr(config, "mode", None)
    if isinstance(config, Mapping):
        mode = config.get("mode")
    if mode is not None:
        return str(getattr(mode, "name", mode)).upper() not in ("NONE", "0")
    if level is not None:
        return int(getattr(level, "value", level)) > 0
    return None if eager is None else True


def settle(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with eager mode chosen where that is ours to choose; sets the variable.

    Call it before anything of vLLM but its platform and its options is imported: compiled
    functions are made at import. ValueError if what was asked for cannot be.
    """
    from vllm.platforms import current_platform

    settled = {k: v for k, v in options.items() if v is not None or k not in SWITCHES}
    if not current_platform.is_cpu():
        return settled
    wanted = asked(options)
    given = os.environ.get(VARIABLE)
    if wanted and os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("the engine options ask for compilation: not with --runner v2 on a CPU")
    if wanted and given == "1":
        raise ValueError(f"{VARIABLE}=1 forbids the compilation that the engine options ask for")
    if wanted or (wanted is None and given not in (None, "1")):
        return settled
    os.environ.setdefault(VARIABLE, "1")
    return settled | {"enforce_eager": True}
