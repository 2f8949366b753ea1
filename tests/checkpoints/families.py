"""Every family of models that the tests answer with, one entry each.

A family that cannot be steered is in the table too, with the reason in `refused`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints import gemma3, idefics3, internvl, mistral3
from checkpoints.gemma3 import make_gemma3
from checkpoints.idefics3 import make_idefics3, make_smolvlm
from checkpoints.internvl import make_internvl
from checkpoints.llava import make_llava
from checkpoints.llava_variants import make_llava_next, make_llava_onevision, make_pixtral
from checkpoints.mistral3 import make_mistral3
from checkpoints.qwen_vl import make_qwen2_5_vl, make_qwen2_vl, make_qwen3_vl
from checkpoints.refused import make_deepseek_vl2, make_lfm2_vl, make_llama4, make_paligemma


@dataclass(frozen=True)
class Family:
    """One family, as `test_families.py` runs it and the table of docs/models.md names it.

    name: in the table. make: writes a tiny checkpoint into a new folder. image, video: the
    placeholder of one of them in a prompt; video is empty where the family takes none.
    note: for the table, what a reader may ask about the positions.
    engine: options of `engine.make_llm`. causal: for the reference; vLLM's CPU backend does
    not let the tokens of an image see each other. refused: words of the sentence with which
    start-up refuses the family; empty where it is steered.
    """

    name: str
    make: Callable[[Path], Path]
    image: str
    video: str = ""
    note: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict)
    causal: bool = False
    refused: str = ""


_QWEN = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
)

FAMILIES: dict[str, Family] = {
    "llava": Family("LLaVA-1.5", make_llava, "<image>"),
    "llava-next": Family(
        "LLaVA-NeXT (1.6)", make_llava_next, "<image>", note="base view, tiles and newlines"
    ),
    "llava-onevision": Family(
        "LLaVA-OneVision",
        make_llava_onevision,
        "<image>",
        "<video>",
        note="base view, tiles, newlines, frames",
        # vLLM makes room for a picture of 1153 x 944, which has not the most tokens here.
        engine={"max_num_batched_tokens": 128},
    ),
    "pixtral": Family("Pixtral", make_pixtral, "[IMG]"),
    "qwen2-vl": Family("Qwen2-VL", make_qwen2_vl, *_QWEN),
    "qwen2.5-vl": Family("Qwen2.5-VL", make_qwen2_5_vl, *_QWEN),
    "qwen3-vl": Family("Qwen3-VL", make_qwen3_vl, *_QWEN),
    "internvl3": Family(
        "InternVL3", make_internvl, internvl.IMAGE, note="context tokens of tiles and thumbnail"
    ),
    "gemma3": Family("Gemma-3", make_gemma3, gemma3.IMAGE, causal=True),
    "idefics3": Family("Idefics3", make_idefics3, idefics3.IMAGE, note="tiles and whole view"),
    "smolvlm": Family("SmolVLM", make_smolvlm, idefics3.IMAGE, note="tiles and whole view"),
    "mistral3": Family("Mistral-3", make_mistral3, mistral3.IMAGE),
    "paligemma": Family(
        "PaliGemma",
        make_paligemma,
        "",
        refused="all prompt rows see the last one, and vLLM computes them as if they did not",
        engine={"limit_mm_per_prompt": {"image": 1}},
    ),
    "llama4": Family(
        "Llama 4",
        make_llama4,
        "",
        refused="is a ChunkedLocalAttention, which is not supported",
        engine={"load_format": "dummy"},
    ),
    "deepseek-vl2": Family(
        "DeepSeek-VL2", make_deepseek_vl2, "", refused="MLA attention is not supported"
    ),
    "lfm2-vl": Family(
        "LFM2-VL",
        make_lfm2_vl,
        "",
        refused="models with recurrent layers are not supported",
    ),
}
