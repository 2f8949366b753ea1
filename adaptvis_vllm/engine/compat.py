"""What this package works with: vLLM versions, models, engine configurations.

One place decides; start-up, admission and `adaptvis doctor` all ask here.
"""

from __future__ import annotations

from typing import Any

# Versions whose sources the hooks were checked against.
CHECKED_VLLM = ("0.32.0", "0.33.0")
# Model types whose text tokens see later ones. Image tokens may see each other (Gemma-3).
PREFIX_LM = ("paligemma",)
WITHOUT = "set VLLM_PLUGINS='' to run vLLM without adaptvis"


def refuse_version(version: str) -> str | None:
    """Why this vLLM version cannot be served; None if it can."""
    if version.split("+")[0] in CHECKED_VLLM:
        return None
    return (
        f"adaptvis: vLLM {version} was not checked; install one of "
        f"{', '.join(CHECKED_VLLM)}, or {WITHOUT}"
    )


def steerable_model(model_config: Any) -> bool:
    """Whether prompts can hold images at all; other models are left alone."""
    return model_config.runner_type == "generate" and model_config.supports_multimodal_inputs


def refuse_config(vllm_config: Any) -> str | None:
    """Why an engine for a multimodal model cannot be steered; None if it can."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    speculation = vllm_config.speculative_config
    checks = [
        (model.use_mla, "MLA attention is not supported"),
        (model.is_encoder_decoder, "encoder-decoder models are not supported"),
        (
            model.is_hybrid or model.is_attention_free,
            "models with recurrent layers are not supported",
        ),
        (model.is_diffusion, "diffusion language models are not supported"),
        (
            model.hf_config.model_type in PREFIX_LM,
            "prefix-LM models (PaliGemma) are not supported: all prompt rows see the last one, and "
            "vLLM computes them as if they did not",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            "pipeline parallelism (pipeline_parallel_size > 1) is not supported",
        ),
        (
            parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1,
            "context parallelism (prefill_ or decode_context_parallel_size > 1) is not supported",
        ),
        (parallel.enable_dbo, "dual batch overlap (enable_dbo) is not supported"),
        (
            bool(parallel.enable_batch_sharded_sampling),
            "enable_batch_sharded_sampling is not supported",
        ),
        (
            vllm_config.kv_transfer_config is not None,
            "KV-transfer connectors (kv_transfer_config) are not supported",
        ),
        (
            speculation is not None and speculation.method != "ngram",
            "speculative decoding other than with n-grams (speculative_config method 'ngram') is "
            "not supported",
        ),
        (
            vllm_config.cache_config.kv_sharing_fast_prefill,
            "kv_sharing_fast_prefill is not supported",
        ),
        (
            bool(vllm_config.compilation_config.pass_config.fuse_attn_quant),
            "fused attention quantisation (pass_config.fuse_attn_quant) is not supported",
        ),
    ]
    for wrong, sentence in checks:
        if wrong:
            return f"adaptvis: {sentence}; {WITHOUT}"
    return None
