"""The code that a GPU runs, interpreted: V2, TRITON_ATTN, our kernel; no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.batch_cases import FULL
from support.engine import BLOCK, prompt
from support.maps_parity import assert_maps, from_text
from support.parity import difference, same_report
from support.triton_cases import CASES


def run(script: str, *arguments: Any) -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-P", str(tests / "support" / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("scheduling", ["sync", "async"] if FULL else ["async"])
def test_same_tokens_as_the_reference(model: Path, tmp_path: Path, scheduling: str) -> None:
    """A mixed batch, then each request on the blocks that the batch left in the cache.

    With asynchronous scheduling, the GPU's default, steps are scheduled before the results
    of earlier ones are known, the confidence among them.
    """
    from adaptvis_vllm.reference.model import ReferenceModel

    out = tmp_path / "out.json"
    run("triton_stack.py", model, out, scheduling)
    found = json.loads(out.read_text())
    assert found["backends"] == ["TRITON_ATTN"]
    assert found["scheduler"] == ("AsyncScheduler" if scheduling == "async" else "Scheduler")
    # A call a layer in steps with a steered row; one launch for all layers where some were chosen.
    with_sides = [count for count in found["plans"] if count]
    assert found["kernel_calls"] == found["layers"] * len(found["plans"])
    assert found["commits"] == [[found["layers"], count, 2] for count in with_sides]
    assert len(with_sides) > 1
    assert len(found["plans"]) < len(found["steps"])
    reference = ReferenceModel(model)
    lengths = []
    for number, (image, text, steering) in enumerate(CASES):
        item = prompt(image, text)
        expected = reference.generate(
            item["prompt"],
            [item["multi_modal_data"]["image"]],
            steering,
            max_tokens=4,
            logprobs=5,
            ignore_eos=True,
        )
        lengths.append(len(expected.prompt_token_ids))
        other = {"logprobs": expected.top_logprobs, "adaptvis": expected.report.as_dict()}
        for batch in ("mixed", "alone"):
            row = found[batch][number]
            assert row["token_ids"] == expected.token_ids, (batch, number)
            assert difference(row, other) < 1e-4
            assert_maps(from_text(row["maps"]), expected.maps, (batch, number))
            if steering is not None:
                assert same_report(row, other)
    # The second prompt's cached blocks leave one prompt token: it looks like a decode.
    assert lengths[1] % BLOCK == 1
    alone = found["steps"][-sum(1 for step in found["steps"] if len(step) == 1) :]
    assert [1] in alone
