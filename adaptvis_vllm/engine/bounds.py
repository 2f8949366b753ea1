"""What vLLM's engine can take of `SamplingParams`, and vLLM itself does not check.

A number beyond it, or of another type, ends a step and with it the engine, or the thread that
decodes requests: whoever sent it, all others would pay.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import msgspec
from vllm import SamplingParams, envs
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.v1.worker.gpu.sample.logit_bias import (
    MAX_NUM_ALLOWED_TOKEN_IDS,
    MAX_NUM_LOGIT_BIAS_TOKENS,
    MAX_NUM_STOP_TOKEN_IDS,
)

from adaptvis_vllm.steering.words import BadParameter, show

# Model Runner V2 keeps seeds as int64, and lengths of sequences as int32.
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1
LENGTH_MAX = 2**31 - 1
_WIRE = "from -2**63 to 2**64 - 1"

_encoder, _decoder = MsgpackEncoder(), MsgpackDecoder(SamplingParams)


def check_sampling(params: SamplingParams, vllm_config: Any) -> None:
    """BadParameter, whose field is one of `SamplingParams`, for a number that would end the engine
    with either model runner."""
    # The choices of n > 1 are sampled with seed, seed + 1 and so on.
    _between("seed", params.seed, SEED_MIN, SEED_MAX + 1 - params.n)
    _between("max_tokens", params.max_tokens, 1, max_tokens_max(vllm_config))
    _check_sent(params)


def check_completed(params: SamplingParams, vllm_config: Any) -> None:
    """The same for lists, once vLLM has made tokens of words and added the model's end tokens.

    Only Model Runner V2 bounds their length.
    """
    if vllm_config.use_v2_model_runner:
        for name, count, most in _lists(params):
            if count > most:
                raise BadParameter(f"{name} must come to at most {most} tokens, not {count}", name)


def max_tokens_max(vllm_config: Any) -> int:
    """The largest `max_tokens`."""
    return LENGTH_MAX - vllm_config.model_config.max_model_len


def _between(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, int) and not least <= value <= most:
        raise BadParameter(
            f"{name} must be a whole number from {least} to {most}, not {show(value)}", name
        )


def _lists(params: SamplingParams) -> Iterator[tuple[str, int, int]]:
    yield "allowed_token_ids", len(params.allowed_token_ids or ()), MAX_NUM_ALLOWED_TOKEN_IDS
    yield "logit_bias", len(params.logit_bias or ()), MAX_NUM_LOGIT_BIAS_TOKENS
    if params.min_tokens:
        yield "stop_token_ids", len(params.all_stop_token_ids), MAX_NUM_STOP_TOKEN_IDS
    words = sum(len(tokens) for tokens in params.bad_words_token_ids or ())
    yield "bad_words", words, envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS


def _check_sent(params: SamplingParams) -> None:
    """Send them to nowhere, as they would go to an engine in another process.

    `extra_args` are left out: vLLM checks their numbers, and in one process they may be anything.
    """
    try:
        _round_trip(params)
        return
    except _UNSENT as error:
        if isinstance(error, TypeError) and not envs.VLLM_ENABLE_V1_MULTIPROCESSING:
            return  # in one process such a value does no harm
    for name in params.__struct_fields__:
        alone, value = copy(_PLAIN), getattr(params, name)
        setattr(alone, name, value)
        try:
            if name != "extra_args":
                _round_trip(alone)
        except _UNSENT as error:
            raise BadParameter(f"{name} {_reason(error)}, not {show(value)}", name) from None
    raise BadParameter("sampling parameters that cannot be sent to the engine")


_UNSENT = (OverflowError, UnicodeEncodeError, TypeError, msgspec.ValidationError)


def _reason(error: Exception) -> str:
    if isinstance(error, OverflowError):
        return f"must hold whole numbers {_WIRE}"
    if isinstance(error, UnicodeEncodeError):
        return "must be Unicode text"
    if isinstance(error, TypeError):
        return "must be a plain value that can be sent to the engine"
    return "must be " + str(error).partition("Expected ")[2].partition(",")[0].strip("`")


def _round_trip(params: SamplingParams) -> None:
    sent = copy(params)
    sent.extra_args = None
    _decoder.decode(_encoder.encode(sent))


_PLAIN = SamplingParams()
