"""vLLM's own models without their engine, whose vision layers do nothing: an embedding depends on
nothing but the patches that are merged, pooled or interpolated into its position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptvis_vllm.geometry.locate import Geometry, locate, sizes
from support.engine import inspect_models_here

LAYERS = {
    "CLIPEncoderLayer",
    "SiglipEncoderLayer",
    "PixtralHFTransformerBlock",
    "Qwen2VisionBlock",
    "Qwen2_5_VisionBlock",
    "Qwen3_VisionBlock",
    "InternS1VisionLayer",
    "Idefics2EncoderLayer",
}


class Tower:
    """A model of vLLM with its processor.

    path: of the checkpoint. arguments: `mm_processor_kwargs` of all its requests. options: of
    the engine.
    """

    def __init__(
        self, path: Path, arguments: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.multimodal import MULTIMODAL_REGISTRY
        from vllm.tokenizers import cached_tokenizer_from_config

        inspect_models_here()
        given = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024} | options
        self.config = EngineArgs(str(path), **given).create_engine_config()
        self.arguments = dict(arguments or {})
        self.tokenizer = cached_tokenizer_from_config(self.config.model_config)
        self.processor = MULTIMODAL_REGISTRY.create_processor(
            self.config.model_config, tokenizer=self.tokenizer
        )

    @cached_property
    def model(self) -> Any:
        """Loaded by vLLM, within `one_process`."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader import get_model

        with set_current_vllm_config(self.config):
            model = get_model(vllm_config=self.config)
        layers = [m for m in model.modules() if type(m).__name__ in LAYERS]
        assert layers, "no vision layer is known"
        for layer in layers:
            pair = type(layer).__name__ == "SiglipEncoderLayer"
            layer.forward = _nothing_and_none if pair else _nothing
        return model

    @property
    def info(self) -> Any:
        return self.processor.info

    def features(self, prompt: str, media: Mapping[str, Any]) -> list[Any]:
        """The `MultiModalFeatureSpec`s of a prompt, by vLLM's processor. media: by modality."""
        from vllm.multimodal.inputs import MultiModalFeatureSpec
        from vllm.multimodal.processing import ProcessorInputs, TimingContext

        inputs = ProcessorInputs(
            self.tokenizer.encode(prompt),
            self.info.parse_mm_data(dict(media)),
            hf_processor_mm_kwargs=self.arguments,
        )
        made = self.processor.apply(inputs, TimingContext(enabled=False))
        return [
            MultiModalFeatureSpec(item, kind, "", place)
            for kind, places in made["mm_placeholders"].items()
            for item, place in zip(made["mm_kwargs"][kind], places, strict=True)
        ]

    def locate(self, prompt: str, media: Mapping[str, Any]) -> Geometry:
        found = self.features(prompt, media)
        return locate(self.info, found, sizes(self.info.parse_mm_data(media)), self.arguments)

    def embed(self, prompt: str, media: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """[P, D]: the embeddings of the prompt's image positions, in its order."""
        import torch
        from vllm.config import set_current_vllm_config
        from vllm.multimodal.utils import group_and_batch_mm_kwargs

        rows = []
        with set_current_vllm_config(self.config), torch.inference_mode():
            for feature in sorted(
                self.features(prompt, media), key=lambda feature: feature.mm_position.offset
            ):
                item = [(feature.modality, feature.data)]
                ((_, _, kwargs),) = group_and_batch_mm_kwargs(item)
                (embeddings,) = self.model.embed_multimodal(**kwargs)
                embeddings = embeddings.reshape(-1, embeddings.shape[-1])
                assert len(embeddings) == feature.mm_position.get_num_embeds()
                rows.append(embeddings.numpy())
        return np.concatenate(rows)


def _nothing(hidden_states: Any = None, *args: Any, x: Any = None, **kwargs: Any) -> Any:
    return x if hidden_states is None else hidden_states


def _nothing_and_none(hidden_states: Any) -> tuple[Any, None]:
    return hidden_states, None


@contextmanager
def one_process() -> Iterator[None]:
    """vLLM's process groups, of this process alone."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.utils.network_utils import get_open_port

    with set_current_vllm_config(VllmConfig()):
        method = f"tcp://127.0.0.1:{get_open_port()}"
        init_distributed_environment(1, 0, method, 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
    try:
        yield
    finally:
        cleanup_dist_env_and_memory()
