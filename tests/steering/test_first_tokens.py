"""Tokens that begin an option, on three kinds of tokenizers, and the confidence over options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.tokenizers import TOKENIZERS

from adaptvis_vllm.steering import policy
from adaptvis_vllm.steering.fields import CONFIDENCES
from adaptvis_vllm.steering.first_tokens import CHOICES, first_tokens, read_tokens, write_tokens

OPTIONS = ("Left", "right", "on top", "Under")


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return TOKENIZERS[request.param](tmp_path_factory.mktemp(request.param))


def test_every_spelling_begins_an_option(tokenizer: Any) -> None:
    own = first_tokens(tokenizer, OPTIONS)
    assert read_tokens(write_tokens(own)) == own
    flat = [token for tokens in own for token in tokens]
    assert len(flat) == len(set(flat))
    for option, tokens in zip(OPTIONS, own, strict=True):
        texts = [tokenizer.decode([t]).strip() for t in tokens]
        assert all(option.lower().startswith(text.lower()) for text in texts)
        spelt = {text[:1] for text in texts}
        assert {option[0].lower(), option[0].upper()} >= spelt


def test_tokens_that_are_shared_count_for_none(tokenizer: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^adaptvis_options: 'on' begins with no token of its own"
    ):
        first_tokens(tokenizer, ("on", "on top"), "adaptvis_options")
    alone = first_tokens(tokenizer, ("Left", "Right"))
    more = first_tokens(tokenizer, ("Left", "Right", "Under"))
    assert all(set(b) <= set(a) for a, b in zip(alone, more, strict=False))


def test_what_has_no_tokens() -> None:
    with pytest.raises(ValueError, match="needs the model's tokenizer"):
        first_tokens(None, OPTIONS)
    with pytest.raises(ValueError, match="stands for the choices of a file"):
        first_tokens(None, CHOICES)


def test_confidence_over_options_is_what_the_logits_say(tokenizer: Any) -> None:
    """By hand, in float64, for rows with different numbers of options."""
    torch.manual_seed(0)
    size = max(t for tokens in first_tokens(tokenizer, OPTIONS) for t in tokens) + 1
    logits = torch.randn(2, size) * 5
    rows = [first_tokens(tokenizer, OPTIONS), first_tokens(tokenizer, OPTIONS[:2])]
    longest = max(len(t) for row in rows for t in row)
    table = torch.full((2, 4, longest), -1)
    for i, row in enumerate(rows):
        for j, tokens in enumerate(row):
            table[i, j, : len(tokens)] = torch.tensor(tokens)
    over = policy.option_logits(logits, table)
    found = policy.measures(over, torch.tensor([4, 2]))
    for i, row in enumerate(rows):
        weights = [sum(math.exp(logits[i, t].item()) for t in tokens) for tokens in row]
        p = sorted((w / sum(weights) for w in weights), reverse=True)
        entropy = -sum(x * math.log(x) for x in p if x) / math.log(len(p))
        want = dict(zip(CONFIDENCES, (p[0], p[0] - p[1], 1 - entropy), strict=True))
        got = dict(zip(CONFIDENCES, found[:, i].tolist(), strict=True))
        assert got == pytest.approx(want, abs=1e-5)
        assert weights[over[i].argmax()] == max(weights)
