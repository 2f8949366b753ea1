"""Seeded random checkpoints of LLaVA-1.5's shape; nothing is downloaded.

Weights are random, so answers mean nothing: time and memory depend on shapes alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptvis_vllm._torchvision import ensure

IMAGE = "<image>"
BASIC = ("<pad>", "<s>", "</s>")
PATCH = 14
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ ' ' if message['role'] == 'user' else eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """layers, hidden, heads, kv_heads, vocab: of the language model; its MLP is 8/3 wide as
    Llama's. image: pixels; (image / 14) ** 2 tokens an image. vision_*: of the CLIP tower."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    kv_heads: int = 12
    vocab: int = 32064
    image: int = 336
    vision_layers: int = 4
    vision_hidden: int = 256
    max_position: int = 40960

    @property
    def image_tokens(self) -> int:
        return (self.image // PATCH) ** 2

    def __str__(self) -> str:
        return (
            f"random LLaVA-1.5 shape, {self.layers} layers x {self.hidden}, {self.heads} heads, "
            f"{self.kv_heads} kv heads, {self.image_tokens} tokens an image"
        )


def make_model(path: str | Path, shape: Shape, seed: int = 0) -> Path:
    """Write a checkpoint in float32 that vLLM and transformers load; returns its folder.

    A folder that holds the same shape and seed is left as it is. ValueError for heads that do
    not divide hidden, kv_heads that do not divide heads, or an image that is no multiple of 14.
    """
    path = Path(path)
    for name, part, whole, other in (
        ("heads", shape.heads, shape.hidden, "hidden"),
        ("kv_heads", shape.kv_heads, shape.heads, "heads"),
        ("a patch", PATCH, shape.image, "image"),
    ):
        if part < 1 or whole % part:
            raise ValueError(f"{name} ({part}) must divide {other} ({whole})")
    made = json.dumps({"seed": seed} | asdict(shape))
    mark = path / "bench_shape.json"
    if mark.is_file() and mark.read_text() == made:
        return path
    ensure()
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlavaForConditionalGeneration(_config(shape))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # norms keep their 1
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    path.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.config.save_pretrained(path)
    model.generation_config.save_pretrained(path)
    model.save_pretrained(path)
    file = path / "model.safetensors"
    # vLLM's CLIP keeps a level that transformers 5 dropped and still accepts.
    old, new = "vision_tower.", "vision_tower.vision_model."
    tensors = {k if new in k else k.replace(old, new): v for k, v in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": shape.image},
            crop_size={"height": shape.image, "width": shape.image},
        ),
        tokenizer=byte_tokenizer([IMAGE]),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(path)
    mark.write_text(made)
    return path


def _config(shape: Shape) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shape.vision_hidden,
            intermediate_size=4 * shape.vision_hidden,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=max(1, shape.vision_hidden // 64),
            image_size=shape.image,
            patch_size=PATCH,
            projection_dim=shape.vision_hidden,
        ),
        text_config=LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.hidden * 8 // 3 // 32 * 32,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.hidden // shape.heads,
            max_position_embeddings=shape.max_position,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=len(BASIC),
        image_seq_length=shape.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def byte_tokenizer(
    specials: Sequence[str], *, names: Mapping[str, str] | None = None, added: Sequence[str] = ()
) -> Any:
    """One token a byte: no training, and prompts whose length a benchmark can choose.

    specials: follow <pad> = 0, <s> = 1, </s> = 2. names: attributes under which a processor asks
    for some of them. added: texts that are one token each.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [*BASIC, *specials]
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in special])
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(specials),
        model_specific_special_tokens=dict(names or {}),
    )
