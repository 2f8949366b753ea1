"""Chosen heads, rules and pictures: the engine's answers are the reference's, for four families."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkpoints.families import FAMILIES
from support import choice_cases
from support.agreement import agree
from support.choice_cases import PARAMETERS, for_v2, make_choices
from support.family_cases import Case, answer

from adaptvis_vllm.reference.model import ReferenceModel, ReferenceOutput

NAMES = ("llava", "qwen2.5-vl", "gemma3", "internvl3")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {name: FAMILIES[name].make(folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def v2(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[dict[str, Any]]]:
    """Answers on Model Runner V2, of a process beside the V1 tests."""
    out, program = tmp_path_factory.mktemp("v2") / "out.json", Path(choice_cases.__file__)
    models = json.dumps({name: str(path) for name, path in checkpoints.items()})

    def work() -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, program, out, models],
            env={**os.environ, "PYTHONPATH": str(program.parents[1]), "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(out.read_text())

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def expected(model: ReferenceModel, name: str, case: Case) -> ReferenceOutput:
    return model.generate(
        case.text(FAMILIES[name]),
        case.images,
        case.steering,
        videos=case.videos,
        max_tokens=case.max_tokens,
        logprobs=20,
    )


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_references(
    name: str, checkpoints: dict[str, Path], v2: Future[dict[str, Any]]
) -> None:
    """On V1 at least 12 of each parameter, on V2 two, and each changes answers."""
    family, path = FAMILIES[name], checkpoints[name]
    cases = {p: make_choices(family, p) for p in PARAMETERS}
    flat = [case for some in cases.values() for case in some]
    given = iter(answer(path, family, flat)["answers"])
    model = ReferenceModel(path, causal=family.causal)
    for parameter, some in cases.items():
        assert len(some) >= 12 or parameter == "videos"
        seen = set()
        for case in some:
            output = expected(model, name, case)
            agree(next(given), output)
            said = output.report
            seen.add((round(output.logprobs[0], 3), said.confidence, said.option))
        assert len(seen) >= len(some) / 3, f"{parameter} changes nothing: no test"
    for case, one in zip(for_v2(family), v2.result()[name]["answers"], strict=True):
        agree(one, expected(model, name, case))
