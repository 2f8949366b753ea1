"""How an engine's answer must agree with the reference's."""

from __future__ import annotations

from typing import Any

import pytest

from adaptvis_vllm.reference.model import ReferenceOutput
from support.engine import flat
from support.maps_parity import assert_maps, from_text


def agree(given: dict[str, Any], expected: ReferenceOutput) -> None:
    """Same prompt, positions, tokens, first-token log-probabilities, maps and report."""
    assert given["prompt_token_ids"] == expected.prompt_token_ids
    assert given["positions"] == expected.image_positions
    assert given["token_ids"] == expected.token_ids
    theirs = {str(token): logprob for token, logprob in expected.top_logprobs[0]}
    common = given["logprobs"].keys() & theirs.keys()
    assert len(common) >= 10
    for token in common:
        assert given["logprobs"][token] == pytest.approx(theirs[token], abs=1e-4)
    assert_maps(from_text(given["maps"]), expected.maps, embeddings=given["positions"])
    report = expected.report.as_dict()
    assert (given["adaptvis"] or {"mode": "off"})["mode"] == report["mode"]
    if given["adaptvis"] is None:
        return
    mine, theirs = flat(given["adaptvis"]), flat(report)
    for one in (mine, theirs):  # transformers reads a token without the prompt's end before it
        for name in [name for name in one if name.endswith(".token")]:
            del one[name]
    assert mine == pytest.approx(theirs, abs=1e-4)
