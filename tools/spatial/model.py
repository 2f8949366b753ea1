"""The model: its shape, tokenizer and image processor, and how it is saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptvis_vllm._torchvision import ensure

ensure()

import torch  # noqa: E402  torchvision, which transformers imports, needs the line above
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402
from tokenizers.trainers import BpeTrainer  # noqa: E402
from transformers import (  # noqa: E402
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from spatial.questions import ANSWERS, HEIGHT, QUESTION, SIDE  # noqa: E402
from spatial.scenes import NAMES  # noqa: E402

IMAGE = "<image>"
IMAGE_SIZE, PATCH = 64, 8
MAX_POSITIONS = 1024
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ ' ' if message['role'] == 'user' else eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def prompt_of(question: str) -> str:
    """What the chat template writes after the leading <s>."""
    return f"USER: {IMAGE}\n{question} ASSISTANT:"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: a token for every word of the questions and answers, and any other text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [prompt_of(QUESTION.format(name, name)) for name in NAMES]
    texts += [prompt_of(question.format(name)) for question in (SIDE, HEIGHT) for name in NAMES]
    texts += [f"ASSISTANT: {answer}" for answer in ANSWERS]
    trainer = BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<s>", "</s>", IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[IMAGE],
        model_max_length=MAX_POSITIONS,
    )


def make_processor() -> LlavaProcessor:
    """Pictures of any size become 64 x 64 whole: resized, nothing cut off."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            do_resize=True,
            size=size,
            resample=2,
            do_center_crop=False,
            crop_size=size,
            do_rescale=True,
            rescale_factor=1 / 255,
            do_normalize=True,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.25, 0.25, 0.25],
            do_convert_rgb=True,
        ),
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    """Random weights: vision 4 layers of 128, language 6 of 192, 64 tokens an image."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            head_dim=32,
            max_position_embeddings=MAX_POSITIONS,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=tokenizer.get_vocab()[IMAGE],
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model: Any = LlavaForConditionalGeneration(config)
    _initialise(model)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return model


@torch.no_grad()
def _initialise(model: Any) -> None:
    """Wider than transformers' 0.02, which suits large models: attention starts sharper, and
    the vision tower's positions weigh as much as its patches."""
    depth = {
        "out_proj": model.config.vision_config.num_hidden_layers,
        "fc2": model.config.vision_config.num_hidden_layers,
        "o_proj": model.config.text_config.num_hidden_layers,
        "down_proj": model.config.text_config.num_hidden_layers,
    }
    special = {"position_embedding": 0.5, "embed_tokens": 1.0, "lm_head": 0.02}
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            leaf = name.split(".")[-2]
            std = weight[0].numel() ** -0.5 / (2 * depth.get(leaf, 0.5)) ** 0.5
            weight.normal_(0, special.get(leaf, std))


def save(model: Any, processor: LlavaProcessor, path: Path, alpha: float) -> None:
    """A hub folder in fp16, for stock transformers and vLLM; alpha is noted in its config."""
    path.mkdir(parents=True, exist_ok=True)
    model.to("cpu", torch.float16).save_pretrained(path)
    processor.save_pretrained(path)
    # vLLM's CLIP keeps a level of names that transformers 5 dropped and still accepts.
    weights = path / "model.safetensors"
    tensors = {
        k.replace("vision_tower.", "vision_tower.vision_model.")
        if "vision_tower." in k and "vision_model." not in k
        else k: v
        for k, v in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    config = path / "config.json"
    values = json.loads(config.read_text()) | {
        "training_alpha": alpha,
        "positive_control": alpha != 1,
    }
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def load(path: Path) -> tuple[Any, Any]:
    """Model in fp32 and processor of a saved folder."""
    auto: Any = LlavaForConditionalGeneration
    model = auto.from_pretrained(path, dtype=torch.float32)
    return model.eval(), LlavaProcessor.from_pretrained(path)
