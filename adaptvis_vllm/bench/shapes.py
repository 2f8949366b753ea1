"""Published models by shape alone: configuration, tokenizer and processor, made on the spot.

vLLM fills the weights itself (`load_format="dummy"`), so nothing of their size is downloaded or
written. Sizes are those of the published `config.json`s; the tokenizer has one token a byte, with
the model's vocabulary size, so prompts of text are longer than the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adaptvis_vllm._torchvision import ensure
from adaptvis_vllm.bench.model import CHAT_TEMPLATE, IMAGE, byte_tokenizer

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GRID = ([336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008])


def write_shape(path: str | Path, name: str) -> Path:
    """Write the folder of one of `SHAPES`, without weights; returns it. ValueError for others."""
    if name not in SHAPES:
        raise ValueError(f"no shape {name!r}; known are {', '.join(SHAPES)}")
    ensure()
    from transformers import GenerationConfig

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config, processor = SHAPES[name]()
    config.save_pretrained(path)
    GenerationConfig(**SPECIAL).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def _clip() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def _llava() -> tuple[Any, Any]:
    from transformers import CLIPImageProcessor, LlamaConfig, LlavaConfig, LlavaProcessor

    tokenizer = byte_tokenizer([IMAGE])
    config = LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        vision_config=_clip(),
        text_config=LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=4096,
            **SPECIAL,
        ),
        image_token_index=_id(tokenizer, IMAGE),
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
        tokenizer=tokenizer,
        **_places(),
    )
    return config, processor


def _llava_next() -> tuple[Any, Any]:
    from transformers import (
        LlavaNextConfig,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        MistralConfig,
    )

    tokenizer = byte_tokenizer([IMAGE])
    config = LlavaNextConfig(
        architectures=["LlavaNextForConditionalGeneration"],
        vision_config=_clip(),
        text_config=MistralConfig(
            architectures=["MistralForCausalLM"],
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            sliding_window=None,
            **SPECIAL,
        ),
        image_token_index=_id(tokenizer, IMAGE),
        image_grid_pinpoints=list(GRID),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 336},
            crop_size={"height": 336, "width": 336},
            image_grid_pinpoints=list(GRID),
        ),
        tokenizer=tokenizer,
        **_places(),
    )
    return config, processor


def _places() -> dict[str, Any]:
    return {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": IMAGE,
        "chat_template": CHAT_TEMPLATE,
    }


def _qwen() -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = byte_tokenizer(names)
    start, end, image, video = (_id(tokenizer, name) for name in names)
    config = Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        text_config={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
            "tie_word_embeddings": False,
            **SPECIAL,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    pixels = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}
    template = CHAT_TEMPLATE.replace(
        "'<image>\n'", "'<|vision_start|><|image_pad|><|vision_end|>'"
    ).replace("{{ bos_token }}", "")
    videos = Qwen2VLVideoProcessor(size=pixels)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size=pixels, image_mean=videos.image_mean, image_std=videos.image_std
        ),
        tokenizer=tokenizer,
        video_processor=videos,
        chat_template=template,
    )
    return config, processor


def _gemma() -> tuple[Any, Any]:
    from transformers import (
        Gemma3Config,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    newlines = ["\n" * count for count in range(1, 5)]  # vLLM looks for these tokens
    tokenizer = byte_tokenizer(list(names.values()), names=names, added=newlines)
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=896,
        patch_size=14,
    )
    vision.vision_use_head = False
    config = Gemma3Config(
        architectures=["Gemma3ForConditionalGeneration"],
        vision_config=vision,
        text_config=Gemma3TextConfig(
            architectures=["Gemma3ForCausalLM"],
            vocab_size=262208,
            hidden_size=3840,
            intermediate_size=15360,
            num_hidden_layers=48,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=256,
            query_pre_attn_scalar=256,
            sliding_window=1024,
            max_position_embeddings=131072,
            **SPECIAL,
        ),
        mm_tokens_per_image=256,
        boi_token_index=_id(tokenizer, names["boi_token"]),
        eoi_token_index=_id(tokenizer, names["eoi_token"]),
        image_token_index=_id(tokenizer, names["image_token"]),
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 896, "width": 896}),
        tokenizer=tokenizer,
        image_seq_length=256,
        # vLLM does not find an image that a newline follows at once.
        chat_template=CHAT_TEMPLATE.replace("'<image>\n'", "'<start_of_image> '"),
    )
    return config, processor


def _id(tokenizer: Any, token: str) -> int:
    return tokenizer.get_vocab()[token]


SHAPES: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "llava-1.5-7b": _llava,
    "llava-1.6-mistral-7b": _llava_next,
    "qwen2.5-vl-7b": _qwen,
    "gemma-3-12b": _gemma,
}
