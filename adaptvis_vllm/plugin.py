"""The one place that hooks vLLM.

`register` is the `vllm.general_plugins` entry point and runs in every vLLM process. Each
hook names the vLLM symbol in whose place a function of ours is called, and why. All symbols
were checked in vLLM 0.32.0 and 0.33.0 (`compat.CHECKED_VLLM`). An unknown version or a
missing symbol stops the process with one sentence: nothing is ever silently unsteered.

Nothing of vLLM is imported at module level: vLLM swallows errors of that import.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hook:
    """target: "module:attribute.path" in vLLM.

    function: "module:function" in this package, called in the target's place with the original
    and the target's own arguments: `f(original, self, ...)`.
    """

    target: str
    function: str
    why: str


_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler."
_INPUT = "vllm.v1.engine.input_processor:InputProcessor."
_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner."
_V2 = "vllm.v1.worker.gpu.model_runner:GPUModelRunner."
_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat."
_COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion."
_RESPONSES = "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses."
_BEAMS = "generate.beam_search."

HOOKS: tuple[Hook, ...] = (
    # Front end
    Hook(
        _INPUT + "__init__",
        "engine.admission:check_engine",
        "defaults and configuration at start-up",
    ),
    Hook(_INPUT + "_validate_params", "engine.admission:check_request", "refuse bad parameters"),
    Hook(_INPUT + "process_inputs", "engine.admission:complete_request", "merge defaults"),
    Hook(
        "vllm.entrypoints.common.offline:OfflineInferenceMixin._params_to_seq",
        "engine.admission:check_before_rendering",
        "refuse bad parameters before pictures are rendered",
    ),
    Hook(
        "vllm.v1.engine.async_llm:AsyncLLM.generate",
        "engine.admission:check_early",
        "refuse bad parameters before a stream begins",
    ),
    *(
        Hook(
            target,
            "engine.admission:check_body",
            "refuse bad parameters before pictures are rendered",
        )
        for target in (
            _CHAT + "create_chat_completion",
            _COMPLETION + "create_completion",
            _RESPONSES + "create_responses",
        )
    ),
    Hook(
        "vllm.renderers.base:BaseRenderer._process_multimodal",
        "engine.admission:process_pictures",
        "HTTP 400 for a picture without a placeholder; sizes of pictures for maps",
    ),
    Hook(
        "vllm.renderers.base:processor_cache_from_config",
        "engine.sent_pictures:count_handovers",
        "a refused request's pictures do not count as sent",
    ),
    *(
        Hook(f"vllm.v1.engine.{target}.__init__", "engine.sent_pictures:connect", "the same")
        for target in ("llm_engine:LLMEngine", "async_llm:AsyncLLM")
    ),
    Hook(
        "vllm.v1.engine.output_processor:OutputProcessor.add_request",
        "engine.sent_pictures:hand_over",
        "the same: now they count; and maps are expected",
    ),
    *(
        Hook(
            f"vllm.multimodal.media.connector:MediaConnector.{fetch}",
            "engine.admission:refuse_media",
            "HTTP 4xx for files that a request names and that cannot be had",
        )
        for fetch in ("fetch_image_async", "fetch_video_async")
    ),
    *(
        Hook(
            f"vllm.entrypoints.{target}",
            f"engine.admission:{function}",
            "beam search is never steered",
        )
        for target, function in (
            (_BEAMS + "online:BeamSearchOnlineMixin.beam_search", "refuse_beam_search"),
            (_BEAMS + "offline:BeamSearchOfflineMixin.beam_search", "refuse_beam_search"),
        )
    ),
    Hook(
        "vllm.v1.engine.output_processor:RequestState.make_request_output",
        "engine.delivery:deliver_report",
        "report with the last output",
    ),
    Hook("vllm.outputs:RequestOutput.add", "engine.delivery:keep_report", "merged outputs"),
    Hook(_CHAT + "chat_completion_full_generator", "serving.responses:full_chat", "report"),
    Hook(_CHAT + "chat_completion_stream_generator", "serving.responses:stream_chat", "report"),
    Hook(
        _COMPLETION + "request_output_to_completion_response",
        "serving.responses:full_completion",
        "report",
    ),
    Hook(
        _COMPLETION + "completion_stream_generator", "serving.responses:stream_completion", "report"
    ),
    # Engine core
    Hook(
        "vllm.config.vllm:VllmConfig._set_compile_ranges",
        "engine.scheduling:make_room",
        "room for side rows beside a full step",
    ),
    Hook(
        _SCHEDULER + "__init__", "engine.scheduling:keep_budget", "full steps are as full as before"
    ),
    Hook(
        _SCHEDULER + "update_from_output",
        "engine.scheduling:exchange_results",
        "confidence and alpha in, report out",
    ),
    Hook(
        "vllm.v1.core.kv_cache_utils:generate_block_hash_extra_keys",
        "engine.scheduling:key_steered_blocks",
        "steered blocks are nobody else's (used by the block hasher)",
    ),
    Hook(
        "vllm.v1.core.block_pool:generate_block_hash_extra_keys",
        "engine.scheduling:key_steered_blocks",
        "the same for KV cache events, which import it by name",
    ),
    Hook(
        "vllm.v1.executor.abstract:Executor.get_class",
        "cluster.cpu_ranks:executor_class",
        "Ray executor on a CPU",
    ),
    # Worker
    Hook(
        "vllm.v1.worker.utils:AttentionGroup.build_metadata",
        "engine.attention.wrap:keep_block_table",
        "FlashInfer's metadata lacks the block table",
    ),
    Hook(
        "vllm.v1.worker.gpu_worker:Worker.compile_or_warm_up_model",
        "engine.runner.check:check_side_rows",
        "a model that does not compute side rows like others is refused",
    ),
    Hook(
        "vllm.v1.worker.cpu_worker:CPUWorker.compile_or_warm_up_model",
        "engine.runner.check:check_side_rows",
        "the same on a CPU",
    ),
    # Worker, Model Runner V1
    Hook(
        _V1 + "initialize_kv_cache", "engine.runner.v1:initialize_kv_cache", "wrap attention layers"
    ),
    Hook(_V1 + "execute_model", "engine.runner.v1:execute_model", "plan the step"),
    Hook(
        "vllm.v1.cudagraph_dispatcher:CudagraphDispatcher.dispatch",
        "engine.runner.v1:graph_dispatch",
        "a step with a steered row leaves FULL CUDA graphs",
    ),
    Hook(_V1 + "_prepare_inputs", "engine.runner.v1:prepare_inputs", "rows of the batch"),
    Hook(
        _V1 + "_determine_batch_execution_and_padding",
        "engine.runner.v1:determine_padding",
        "side rows are padding to everybody else",
    ),
    Hook(_V1 + "_model_forward", "engine.runner.v1:model_forward", "side rows in, chosen ones out"),
    Hook(_V1 + "sample_tokens", "engine.runner.v1:sample_tokens", "send the results"),
    Hook(
        "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin._set_active_loras",
        "engine.runner.v1:set_active_loras",
        "side rows have their request's adapter (both runners)",
    ),
    # Worker, Model Runner V2
    Hook(
        _V2 + "initialize_kv_cache", "engine.runner.v2:initialize_kv_cache", "wrap attention layers"
    ),
    Hook(_V2 + "execute_model", "engine.runner.v2:execute_model", "plan the step"),
    Hook(
        "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager.dispatch",
        "engine.runner.v2:graph_dispatch",
        "a step with a steered row leaves FULL CUDA graphs",
    ),
    Hook(
        "vllm.v1.worker.gpu.model_runner:dispatch_cg_and_sync_dp",
        "engine.runner.v2:choose_graph",
        "side rows are padding to everybody else",
    ),
    Hook(_V2 + "prepare_attn", "engine.runner.v2:prepare_attn", "rows of the batch"),
    Hook(_V2 + "sample_tokens", "engine.runner.v2:sample_tokens", "send the results"),
)

_installed = False


def register() -> None:
    """Install every hook once. RuntimeError, with one sentence, if one cannot be."""
    global _installed
    if _installed:
        return
    from adaptvis_vllm import _garbage, _torchvision

    _torchvision.ensure()
    import vllm

    from adaptvis_vllm.engine.compat import refuse_version

    reason = refuse_version(vllm.__version__)
    if reason:
        raise RuntimeError(reason)
    found = [(hook, *resolve(hook)) for hook in HOOKS]
    for hook, owner, name, original in found:
        setattr(owner, name, bound(hook, original))
    from vllm.outputs import RequestOutput

    from adaptvis_vllm.engine.delivery import output_report

    RequestOutput.adaptvis = property(output_report)  # type: ignore[attr-defined]
    # A `Maps` on finished outputs of requests that asked for maps and have an image.
    RequestOutput.adaptvis_maps = None  # type: ignore[attr-defined]
    _installed = True
    _garbage.imported()


def resolve(hook: Hook) -> tuple[Any, str, Callable[..., Any]]:
    """(owner, attribute name, current value) of a hook's target; RuntimeError if missing."""
    module, _, path = hook.target.partition(":")
    *parents, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        return owner, name, vars(owner)[name]
    except (ImportError, AttributeError, KeyError) as error:
        from adaptvis_vllm.engine.compat import WITHOUT

        raise RuntimeError(
            f"adaptvis: vLLM has no {hook.target} ({hook.why}): {error}; {WITHOUT}"
        ) from error


def bound(hook: Hook, original: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the target's place: a call of it is `function(original, *its arguments)`."""
    module, _, name = hook.function.partition(":")
    function = getattr(importlib.import_module(f"adaptvis_vllm.{module}"), name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(original, *args, **kwargs)

    return staticmethod(call) if isinstance(original, staticmethod) else call
