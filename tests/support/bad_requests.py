"""Good and bad requests beside each other: how many, how the good ones are steered by picture, and
those that an engine in Python must refuse."""

from __future__ import annotations

from typing import Any

from checkpoints.images import make_image
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from adaptvis_vllm import AdaptVis, ScalingVis
from support.batch_cases import FULL
from support.engine import prompt

ROWS = 300 if FULL else 90
STEERINGS = (None, ScalingVis(3.0), AdaptVis(0.3, 3.0, 0.4))
REFUSALS = (ValueError, VLLMValidationError)


def bad_requests() -> dict[str, tuple[Any, dict[str, Any], str]]:
    """name -> (prompt about picture 0, sampling options, what the error names)."""
    two = {"prompt": "USER: <image>?", "multi_modal_data": {"image": [make_image(0)] * 2}}
    many = {"prompt": "<image>" * 4, "multi_modal_data": {"image": [make_image(0)] * 4}}
    none = {"prompt": "USER: hi", "multi_modal_data": {"image": make_image(0)}}
    layers = ScalingVis(2.0, layers="9").extra_args()
    return {
        "layers": (prompt(0), {"extra_args": layers}, "adaptvis_layers"),
        "seed": (prompt(0), {"temperature": 1.0, "seed": 2**64}, "seed must be a whole number"),
        "last seed": (prompt(0), {"temperature": 1.0, "seed": 2**63 - 2, "n": 3}, "seed must be"),
        "kind of seed": (prompt(0), {"temperature": 1.0, "seed": "7"}, "seed must be int"),
        "max_tokens": (prompt(0), {"max_tokens": 2**40}, "max_tokens must be a whole number"),
        "top_k": (prompt(0), {"temperature": 1.0, "top_k": 2**70}, "top_k must hold whole numbers"),
        "stop": (prompt(0), {"stop": ["\ud800"]}, "stop must be Unicode"),
        "stop_token_ids": (prompt(0), {"stop_token_ids": [10**6]}, "stop_token_ids"),
        "logprobs": (prompt(0), {"logprobs": 21}, "logprobs"),
        "placeholder": (none, {}, "placeholder"),
        "placeholders": (two, {}, "placeholder"),
        "many": (many, {}, "image"),
        "long": (prompt(0, "word " * 123), {}, "512"),
    }


def asked(**options: Any) -> SamplingParams:
    return SamplingParams(**({"temperature": 0.0, "max_tokens": 8} | options))
