"""What cannot be steered is refused at start-up, with one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adaptvis_vllm.engine import compat
from adaptvis_vllm.engine.attention import wrap
from adaptvis_vllm.engine.steps import Steering
from adaptvis_vllm.plugin import HOOKS, Hook, resolve


@pytest.fixture(scope="module")
def config(model: Path) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(str(model), dtype="float32", max_model_len=256).create_engine_config()


REFUSED = [
    ("parallel_config.pipeline_parallel_size", 2, "pipeline_parallel_size"),
    ("parallel_config.prefill_context_parallel_size", 2, "context parallelism"),
    ("parallel_config.decode_context_parallel_size", 2, "context parallelism"),
    ("parallel_config.enable_dbo", True, "enable_dbo"),
    ("parallel_config.enable_batch_sharded_sampling", True, "enable_batch_sharded_sampling"),
    ("kv_transfer_config", object(), "kv_transfer_config"),
    ("speculative_config", SimpleNamespace(method="eagle"), "speculative_config"),
    ("cache_config.kv_sharing_fast_prefill", True, "kv_sharing_fast_prefill"),
    ("compilation_config.pass_config.fuse_attn_quant", True, "fuse_attn_quant"),
    ("model_config.use_mla", True, "MLA"),
    ("model_config.is_encoder_decoder", True, "encoder-decoder"),
    ("model_config.is_hybrid", True, "recurrent"),
    ("model_config.is_attention_free", True, "recurrent"),
    ("model_config.is_diffusion", True, "diffusion"),
    ("model_config.hf_config.model_type", "paligemma", "prefix-LM"),
]


@pytest.mark.parametrize(("path", "value", "word"), REFUSED, ids=[r[0] for r in REFUSED])
def test_configuration(
    config: Any, path: str, value: Any, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compat.refuse_config(config) is None
    *parents, name = path.split(".")
    owner = config
    for parent in parents:
        owner = getattr(owner, parent)
    if isinstance(getattr(type(owner), name, None), property) or name == "is_hybrid":
        monkeypatch.setattr(type(owner), name, value)
    else:
        monkeypatch.setattr(owner, name, value)
    reason = compat.refuse_config(config)
    assert word in reason
    assert reason.count(";") == 1
    assert "\n" not in reason


def start(model: Path, *lines: str) -> str:
    """stderr of a process that fails to start an engine; lines run before it."""
    code = "\n".join(["import vllm", *lines, f"vllm.LLM({str(model)!r})"])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=os.environ, capture_output=True, text=True
    )
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pipeline_parallel_size": 2}, "adaptvis: pipeline parallelism"),
        (
            {"additional_config": {"adaptvis": {"alpha": -2}}},
            r"additional_config\['adaptvis'\]: alpha must be",
        ),
    ],
)
def test_an_engine_does_not_start(model: Path, options: dict[str, Any], sentence: str) -> None:
    from vllm import LLM

    with pytest.raises(ValueError, match=sentence):
        LLM(str(model), max_model_len=256, **options)


def test_unchecked_version_does_not_start(model: Path) -> None:
    errors = start(model, "vllm.__version__ = '0.34.0'")
    assert "vLLM 0.34.0 was not checked" in errors.splitlines()[-1]


def test_missing_hook_does_not_start(model: Path) -> None:
    scheduler = "vllm.v1.core.sched.scheduler"
    errors = start(
        model,
        f"import {scheduler} as s",
        "s.Scheduler._update = s.Scheduler.update_from_output",
        "del s.Scheduler.update_from_output",
    )
    assert f"{scheduler}:Scheduler.update_from_output" in errors.splitlines()[-1]


@pytest.mark.parametrize("version", ["0.31.0", "0.32.1", "0.34.0", "1.0", "0.33.0rc1"])
def test_unchecked_versions(version: str) -> None:
    assert version in compat.refuse_version(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.33.0"])
def test_checked_versions(version: str) -> None:
    assert compat.refuse_version(version) is None


def test_every_hook_resolves() -> None:
    for hook in HOOKS:
        resolve(hook)
        assert hook.why
    assert len({hook.target for hook in HOOKS}) == len(HOOKS)


def test_a_missing_hook_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"Scheduler\.no_such \(because\)"):
        resolve(Hook("vllm.v1.core.sched.scheduler:Scheduler.no_such", "x:y", "because"))
    with pytest.raises(RuntimeError, match=r"vllm\.nowhere"):
        resolve(Hook("vllm.nowhere:f", "x:y", "because"))


@pytest.mark.parametrize(
    ("backend", "kind", "changes", "word"),
    [
        ("FLEX_ATTENTION", "Attention", {}, "FLEX_ATTENTION"),
        ("FLASH_ATTN", "ChunkedLocalAttention", {}, "ChunkedLocalAttention"),
        ("TRITON_ATTN", "PrefillPrefixLMAttention", {}, "PrefillPrefixLMAttention"),
        ("CPU_ATTN", "Attention", {"alibi_slopes": [1.0]}, "ALiBi"),
        ("CPU_ATTN", "Attention", {"kv_cache_dtype": "fp8_e4m3"}, "fp8_e4m3"),
        ("FLASHINFER", "Attention", {"kv_cache_dtype": "nvfp4"}, "nvfp4"),
        ("TRITON_ATTN", "Attention", {"kv_cache_dtype": "int8_per_token_head"}, "int8"),
        ("FLASH_ATTN", "Attention", {"shared": "layers.3"}, r"keys and values of layers\.3"),
    ],
)
def test_attention_layers(backend: str, kind: str, changes: dict[str, Any], word: str) -> None:
    impl = SimpleNamespace(forward=lambda: None, alibi_slopes=changes.get("alibi_slopes"))
    layer = type(kind, (), {})()
    layer.attn_backend = SimpleNamespace(get_name=lambda: backend)
    layer.impl, layer.kv_cache_dtype = impl, changes.get("kv_cache_dtype", "auto")
    layer.kv_sharing_target_layer_name = changes.get("shared")
    before = impl.forward
    with pytest.raises(ValueError, match=word):
        wrap.install({0: ("layers.0", layer)}, Steering(torch.device("cpu"), {0: 4}))
    assert impl.forward is before


def test_a_forward_pass_without_its_layers_is_an_error() -> None:
    """A replayed graph would skip the steering: that must not pass in silence."""
    from adaptvis_vllm.engine.plan import StepPlan

    steering = Steering(torch.device("cpu"), {0: 4, 1: 4})
    steering.plan = StepPlan(layers_due=2, layers_done=0)
    with pytest.raises(RuntimeError, match="0 of 2 layers"):
        steering.end_forward()


def test_the_import_name_kernels_stays_free() -> None:
    """It belongs to another project, for which transformers looks; here and in a subprocess."""
    code = "import importlib.util as u, adaptvis_vllm.kernels; assert not u.find_spec('kernels')"
    exec(code, {})
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
