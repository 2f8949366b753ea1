"""What an answer of one token reads, by vLLM's own detokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, FastIncrementalDetokenizer


def with_texts(state: Any, candidates: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """`report.candidate`s with their `token`s, which stay None without a tokenizer.

    state: vLLM's `RequestState`, whose stop strings end an answer too.
    """
    read: dict[int, tuple[str | None, bool]] = {}
    out = []
    for one in candidates:
        token_id = one["token_id"]
        if token_id not in read:
            read[token_id] = _alone(state, token_id, one["stop"])
        text, stop = read[token_id]
        out.append({**one, "token": text, "stop": stop})
    return out


def _alone(state: Any, token_id: int, stop: bool) -> tuple[str | None, bool]:
    """(text, whether an answer ends with it)."""
    used = state.detokenizer
    if not isinstance(used, BaseIncrementalDetokenizer):
        return None, stop
    reader = _reader(state, used)
    stop_string = reader.update([token_id], stop)
    return reader.get_next_output_text(finished=True, delta=False), stop or stop_string is not None


def _reader(state: Any, used: Any) -> Any:
    """A detokenizer as `used` was before the first token."""
    names = ("stop", "min_tokens", "include_stop_str_in_output", "skip_special_tokens")
    params = SimpleNamespace(
        **{name: getattr(used, name) for name in names},
        spaces_between_special_tokens=used.spaces_between_special_tokens,
    )
    request = SimpleNamespace(
        request_id=state.request_id,
        sampling_params=params,
        prompt_token_ids=state.prompt_token_ids,
        prompt_embeds=state.prompt_embeds,
    )
    tokenizer = used.tokenizer
    if isinstance(used, FastIncrementalDetokenizer):  # it holds what lies inside
        tokenizer = SimpleNamespace(_tokenizer=tokenizer)
    return type(used)(tokenizer, request)
