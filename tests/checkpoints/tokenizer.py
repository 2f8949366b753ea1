"""A byte-level tokenizer trained on the spot: small, and it can write anything."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "USER: Is the mug under the table? ASSISTANT: No, the mug is on the table.",
    "USER: Where is the cat in relation to the chair? Answer with left, right, on or under.",
    "Describe the picture. What colour is the circle? What is behind the bowl?",
    "The red square is to the left of the blue triangle, and the green circle is above it.",
    "A dog in front of a house; a bicycle beside a tree; two boats on the water; a man at a desk.",
    "Compare the first image with the second image and say which one is brighter.",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ IMAGE + '\n' }}"
    "{% elif part['type'] == 'video' %}{{ VIDEO + '\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ ' ' if message['role'] == 'user' else eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def chat_template(image: str, video: str = "", *, bos: bool = True) -> str:
    """USER: <image>\\n... ASSISTANT:, with the placeholders of one image and one video."""
    template = CHAT_TEMPLATE.replace("IMAGE", repr(image)).replace("VIDEO", repr(video))
    return ("{{ bos_token }}" if bos else "") + template


def make_tokenizer(
    vocab_size: int,
    specials: tuple[str, ...],
    *,
    add_bos: bool = True,
    names: Mapping[str, str] | None = None,
    added: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """specials follow <pad> = 0, <s> = 1, </s> = 2; the prompt gets a leading <s>.

    names: attributes under which a processor asks for specials ({"image_token": "<image>"}).
    added: texts that are one token each wherever they occur.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = ["<pad>", "<s>", "</s>", *specials]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens(list(added))
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(specials),
        model_specific_special_tokens=dict(names or {}),
    )


def unwritable(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Special tokens except </s>, and those that are no printable ASCII on their own."""
    special = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    texts = ((i, str(tokenizer.decode([i]))) for i in range(len(tokenizer)))
    return tuple(
        i
        for i, text in texts
        if i in special
        or (i != tokenizer.eos_token_id and not (text.isascii() and text.isprintable()))
    )
