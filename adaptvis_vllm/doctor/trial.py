"""`adaptvis doctor --model`: the model's first layers, with random weights, in an engine.

The engine's own check runs there: do side rows reproduce the row that they copy?
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

LAYERS = 4  # of the decoder; some models add features of the image in the first three
LENGTH = 4096  # tokens, for a small picture
CACHE_BYTES = 1 << 30


def differences(engine_args: Any) -> dict[str, float]:
    """What `runner.check.measure` finds. engine_args: vLLM `EngineArgs`.

    ValueError, beginning with "adaptvis:", for a model that fails; others for an engine that
    does not start.
    """
    from vllm import LLM

    from adaptvis_vllm.engine.runner.check import measure

    longest = engine_args.create_engine_config().model_config.max_model_len
    trial = replace(
        engine_args,
        load_format="dummy",
        hf_overrides=_first_layers(engine_args.hf_overrides),
        enforce_eager=True,
        max_model_len=min(longest, LENGTH),
        max_num_seqs=2,
        kv_cache_memory_bytes=CACHE_BYTES,
        tensor_parallel_size=1,
        data_parallel_size=1,
        quantization=None,
        speculative_config=None,
    )
    before = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        llm = LLM(**{**vars(trial), "disable_log_stats": True})
        core: Any = llm.llm_engine.engine_core
        try:
            return measure(core.engine_core.model_executor.driver_worker.worker)
        finally:
            core.shutdown()
    finally:
        if before is None:
            del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
        else:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = before


def _first_layers(given: Any) -> Callable[[Any], Any]:
    """Overrides of the user's, then fewer layers."""

    def override(config: Any) -> Any:
        if callable(given):
            config = given(config)
        else:
            config.update(given or {})
        text = config.get_text_config()
        if not hasattr(text, "num_hidden_layers"):  # vLLM asks with less than the model's own too
            return config
        text.num_hidden_layers = min(text.num_hidden_layers, LAYERS)
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: text.num_hidden_layers]
        return config

    return override
