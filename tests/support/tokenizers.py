"""One tokenizer of each kind, as an engine has them: byte-level BPE, SentencePiece, Tekken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mistral_common
from checkpoints.tokenizer import make_tokenizer

_DATA = Path(mistral_common.__file__).parent / "data"


def byte_level(folder: Path) -> Any:
    return make_tokenizer(384, ())


def sentencepiece(folder: Path) -> Any:
    """Mistral-7B's, with the space before a text that Llama's has too."""
    from transformers import LlamaTokenizer

    shutil.copy(_DATA / "mistral_instruct_tokenizer_240216.model.v2", folder / "tokenizer.model")
    return LlamaTokenizer.from_pretrained(folder)


def tekken(folder: Path) -> Any:
    from vllm.tokenizers.mistral import MistralTokenizer

    shutil.copy(_DATA / "tekken_240911.json", folder / "tekken.json")
    return MistralTokenizer.from_pretrained(str(folder))


TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece,
    "tekken": tekken,
}
