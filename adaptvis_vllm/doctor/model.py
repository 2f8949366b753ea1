"""`adaptvis doctor --model M`: what steering does to one model, found without its weights.

The model's layers are made on torch's meta device, as an engine with the same options would
make them; its first ones run with random weights, see `trial`; its processor answers a
sample prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from adaptvis_vllm.doctor.drawing import draw, ranges
from adaptvis_vllm.doctor.trial import differences
from adaptvis_vllm.engine.attention import wrap
from adaptvis_vllm.engine.compat import refuse_config, steerable_model
from adaptvis_vllm.files.media import load_image, pixels
from adaptvis_vllm.steering.span import image_positions

QUESTION = "Is the spoon left or right of the cup?"
SIZE = (336, 336)  # of the sample picture, in pixels


def report(engine_args: Any, picture: Path | None = None) -> tuple[str, bool]:
    """(text, whether an engine with these arguments steers this model).

    engine_args: vLLM `EngineArgs`. picture: for the sample prompt; None for a grey one.
    """
    lines = [f"model {engine_args.model}"]
    try:
        config = engine_args.create_engine_config()
    except Exception as error:  # whatever keeps vLLM from it is the answer
        return _end(lines, f"vLLM does not serve it: {_sentence(error)}")
    model = config.model_config
    lines.append(_line("architecture", model.architecture))
    if not steerable_model(model):
        return _end(lines, "its prompts hold no images")
    reason = refuse_config(config)
    if reason:
        return _end(lines, reason.removeprefix("adaptvis: "))
    try:
        layers = decoder_layers(config)
    except Exception as error:  # a model that asks its weights for something
        layers = {}
        count = model.get_total_num_hidden_layers()
        lines.append(_line("layers", f"0-{count - 1}; unseen, they are made with weights only"))
        lines.append(_line("", _sentence(error)))
    if layers:
        backends = sorted({layer.attn_backend.get_name() for _, layer in layers.values()})
        lines.append(_line("backend", ", ".join(backends)))
        for name, layer in layers.values():
            reason = wrap.refuse(name, layer)
            if reason:
                return _end(lines, reason)
        for kind, indices in _by_kind(layers).items():
            lines.append(_line("layers", f"{ranges(indices)}: {kind}"))
    try:
        found = differences(engine_args)
    except Exception as error:  # this machine may lack the memory
        text = _sentence(error)
        if text.startswith("adaptvis: "):
            return _end(lines, text.removeprefix("adaptvis: "))
        lines.append(_line("side rows", f"not tried: {text}"))
    else:
        seen = "as the row they copy" if found else "not tried: no picture fits"
        lines.append(_line("side rows", f"{seen} (first layers, random weights)"))
    lines += _sample(config, picture)
    return _end(lines, None)


def decoder_layers(vllm_config: Any) -> dict[int, tuple[str, Any]]:
    """By index each decoder layer's name and vLLM `Attention`, made without weights."""
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    from adaptvis_vllm.engine.runner.install import attention_layers

    # vLLM shares rotary embeddings among all models of a process: not these, without values.
    shared = rotary_embedding._ROPE_DICT
    before = dict(shared)
    try:
        with (
            _one_rank(vllm_config),
            torch.device("meta"),
            set_default_torch_dtype(vllm_config.model_config.dtype),
        ):
            initialize_model(vllm_config)
    finally:
        shared.clear()
        shared.update(before)
    return attention_layers(vllm_config)


def kind_of(layer: Any) -> str:
    """What an attention layer does beside causal attention. layer: vLLM `Attention`."""
    window = layer.sliding_window
    words = [f"window {window}" if window else "full attention"]
    words += [f"soft cap {layer.impl.logits_soft_cap:g}"] if layer.impl.logits_soft_cap else []
    words += ["sinks"] if getattr(layer.impl, "sinks", None) is not None else []
    return ", ".join(words)


def _by_kind(layers: dict[int, tuple[str, Any]]) -> dict[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for index, (_, layer) in sorted(layers.items()):
        kinds.setdefault(kind_of(layer), []).append(index)
    return kinds


@contextmanager
def _one_rank(vllm_config: Any) -> Iterator[None]:
    """vLLM's layers ask for their process group when they are made."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )

    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(vllm_config):
        meeting = f"file://{folder}/ranks"
        init_distributed_environment(1, 0, meeting, local_rank=0, backend="gloo")
        try:
            ensure_model_parallel_initialized(1, 1)
            yield
        finally:
            cleanup_dist_env_and_memory()


def _sample(vllm_config: Any, picture: Path | None) -> list[str]:
    """The sample prompt, drawn."""
    from vllm.renderers import renderer_from_config

    given = load_image(picture, Path(), "--image") if picture else Image.new("RGB", SIZE, "grey")
    image = pixels(given)
    renderer = renderer_from_config(vllm_config)
    try:
        prompt, template = _render(renderer, image)
    finally:
        renderer.shutdown()
    tokens = list(prompt["prompt_token_ids"])
    features = [
        SimpleNamespace(modality=modality, mm_position=place)
        for modality, places in prompt["mm_placeholders"].items()
        for place in places
    ]
    positions = image_positions(features, "embeddings").tolist()
    about = f"{len(tokens)} tokens, a picture of {image.width} x {image.height}, {template}"
    return [
        _line("sample prompt", about),
        _line("positions", f"{len(positions)} of an image: {ranges(positions)}"),
        "",
        *draw(tokens, positions, renderer.tokenizer),
    ]


def _render(renderer: Any, image: Image.Image) -> tuple[Any, str]:
    """vLLM's engine input, and where the prompt's form comes from."""
    from vllm.renderers.hf import ChatTemplateResolutionError  # here in 0.32 and in 0.33
    from vllm.renderers.params import ChatParams

    picture = {"type": "image_pil", "image_pil": image}
    content = [picture, {"type": "text", "text": QUESTION}]
    # As `LLM.chat` and the server ask for it.
    chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True, "tokenize": False})
    options = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
    try:
        _, (prompt,) = renderer.render_chat([[{"role": "user", "content": content}]], chat, options)
        return prompt, "by the chat template"
    except ChatTemplateResolutionError:
        text = renderer.get_mm_processor().dummy_inputs.get_dummy_text({"image": 1})
        raw = {"prompt": f"{text}\n{QUESTION}", "multi_modal_data": {"image": image}}
        (prompt,) = renderer.render_cmpl([raw])
        return prompt, "raw, as there is no chat template"


def _line(name: str, value: str) -> str:
    return f"  {name:<15} {value}"


def _end(lines: Sequence[str], reason: str | None) -> tuple[str, bool]:
    last = "steering can work with it" if reason is None else f"it CANNOT be steered: {reason}"
    return "\n".join([*lines, "", last]), reason is None


def _sentence(error: Exception) -> str:
    """The first line that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    said = [line for line in lines if line and "validation error" not in line]
    return f"{said[0] if said else type(error).__name__:.300}"
