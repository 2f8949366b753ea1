"""Steered answers of the engine are the reference's, for every family; docs/models.md says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.families import FAMILIES, Family
from support import family_table
from support.agreement import agree
from support.family_cases import Case, answer, candidates, make_cases
from support.family_table import Found
from support.maps_parity import from_text, moved

from adaptvis_vllm.reference.model import ReferenceModel, ReferenceOutput

STEERED = [name for name, family in FAMILIES.items() if not family.refused]
REFUSED = [name for name, family in FAMILIES.items() if family.refused]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else FAMILIES[name].make(path)

    return make


@pytest.fixture(scope="module")
def references(checkpoint: Callable[[str], Path]) -> Callable[[str, Case], ReferenceOutput]:
    models: dict[str, ReferenceModel] = {}

    def generate(name: str, case: Case) -> ReferenceOutput:
        if name not in models:
            models.clear()
            models[name] = ReferenceModel(checkpoint(name), causal=FAMILIES[name].causal)
        return models[name].generate(
            case.text(FAMILIES[name]),
            case.images,
            case.steering,
            videos=case.videos,
            max_tokens=case.max_tokens,
            logprobs=20,
        )

    return generate


@pytest.fixture(scope="module")
def found() -> dict[str, Found]:
    return {name: Found() for name in FAMILIES}


@pytest.fixture(scope="module", autouse=True)
def v2(
    request: pytest.FixtureRequest,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[Callable[..., None], Future[dict[str, Any]]]]:
    """By test, the answers of its selected families on V2: from processes beside the V1 tests."""
    programs: dict[Callable[..., None], tuple[str, ...]] = {
        test_v2_answers_as_the_reference: (),
        test_image_tokens_see_each_other_on_gpu_backends: ("TRITON_ATTN",),
    }
    answers = {}
    with ThreadPoolExecutor(1) as pool:
        for test, arguments in programs.items():
            items = [i for i in request.session.items if i.originalname == test.__name__]
            models = {n: checkpoint(n) for n in (i.callspec.params["name"] for i in items)}
            if models:
                folder = tmp_path_factory.mktemp("v2")
                answers[test] = pool.submit(run_v2, folder, models, *arguments)
        yield answers


def run_v2(folder: Path, models: dict[str, Path], *arguments: str) -> dict[str, Any]:
    """What `family_cases.py`, as a program, answers for these checkpoints."""
    out, program = folder / "out.json", Path(__file__).parents[1] / "support" / "family_cases.py"
    paths = json.dumps({name: str(path) for name, path in models.items()})
    done = subprocess.run(
        [sys.executable, program, out, paths, *arguments],
        env={**os.environ, "PYTHONPATH": str(program.parents[1]), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def side_rows_are_row_n(result: dict[str, Any]) -> None:
    """With both alphas 1, where a prompt ends in an image embedding too."""
    assert result["sides"].keys() == {"an image", "text"}
    assert max(result["sides"].values()) < 1e-5


@pytest.mark.parametrize("name", STEERED)
def test_v1_answers_as_the_reference(
    name: str,
    checkpoint: Callable[[str], Path],
    references: Callable[[str, Case], ReferenceOutput],
    found: dict[str, Found],
) -> None:
    family = FAMILIES[name]
    cases = [case for case in make_cases(family) if not case.v2]
    result = answer(checkpoint(name), family, [*cases, candidates(family)])
    agree(result["answers"].pop(), references(name, candidates(family)))
    plain: dict[str, list[int]] = {}
    changed, alphas = 0, set()
    for case, given in zip(cases, result["answers"], strict=True):
        expected = references(name, case)
        agree(given, expected)
        if case.steering is None:
            plain[case.text(family)] = expected.token_ids
            continue
        alphas.add(expected.report.alpha)
        changed += plain.get(case.text(family), expected.token_ids) != expected.token_ids
    side_rows_are_row_n(result)
    maps = [one for given in result["answers"] if (one := from_text(given["maps"]))]
    assert len(maps) >= 6
    assert min(map(moved, maps)) > 0.01, "steering moves no weight: the maps are no test"
    assert not any(one.unknown for one in maps)
    assert len(cases) >= 8
    assert changed, "steering changes no answer: the checkpoint is no test"
    assert {0.4, 2.5} <= alphas, "both branches of adaptive steering"
    record(found[name], family, checkpoint(name), result)
    found[name].v1 = len(cases)
    found[name].video = any(case.videos for case in cases)


def record(found: Found, family: Family, model: Path, result: dict[str, Any]) -> None:
    """Names of the tokens at and between the image positions, kinds of layers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    inside: set[int] = set()
    around: set[int] = set()
    for given in result["answers"]:
        at, ids = given["positions"], given["prompt_token_ids"]
        inside |= {ids[p] for p in at}
        around |= {ids[p] for p in range(at[0], at[-1] + 2)} & set(tokenizer.all_special_ids)
    found.inside = tokenizer.convert_ids_to_tokens(sorted(inside))
    found.between = tokenizer.convert_ids_to_tokens(sorted(around - inside))
    found.layers = result["layers"]


@pytest.mark.parametrize("name", STEERED)
def test_v2_answers_as_the_reference(
    name: str,
    v2: dict[Callable[..., None], Future[dict[str, Any]]],
    references: Callable[[str, Case], ReferenceOutput],
    found: dict[str, Found],
) -> None:
    cases = [case for case in make_cases(FAMILIES[name]) if case.v2]
    assert len(cases) == 2
    result = v2[test_v2_answers_as_the_reference].result()[name]
    side_rows_are_row_n(result)
    agree(result["answers"].pop(), references(name, candidates(FAMILIES[name])))
    for case, given in zip(cases, result["answers"], strict=True):
        agree(given, references(name, case))
    found[name].v2 = len(cases)


@pytest.mark.parametrize("name", [n for n in STEERED if FAMILIES[n].causal])
def test_image_tokens_see_each_other_on_gpu_backends(
    name: str,
    checkpoint: Callable[[str], Path],
    v2: dict[Callable[..., None], Future[dict[str, Any]]],
) -> None:
    """V2, TRITON_ATTN and our kernel, interpreted, against transformers as it is."""
    path = checkpoint(name)
    result = v2[test_image_tokens_see_each_other_on_gpu_backends].result()[name]
    side_rows_are_row_n(result)
    given = result["answers"]
    cases = [case for case in make_cases(FAMILIES[name]) if case.v2]
    model, causal = ReferenceModel(path), ReferenceModel(path, causal=True)
    for case, answered in zip([*cases, candidates(FAMILIES[name])], given, strict=True):
        asked = (case.text(FAMILIES[name]), case.images, case.steering)
        expected = model.generate(*asked, max_tokens=case.max_tokens, logprobs=20)
        agree(answered, expected)
        assert causal.generate(*asked, max_tokens=1).logprobs[0] != pytest.approx(
            expected.logprobs[0], abs=1e-3
        )


def test_learned_sinks(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No family has any, so a LLaVA gets them: in vLLM's backend, and in transformers by gpt-oss's
    eager attention. Sinks take what the maps lack of 1."""
    from transformers.models.gpt_oss import modeling_gpt_oss
    from transformers.models.llama import modeling_llama
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    from adaptvis_vllm.reference import attention

    sinks = torch.linspace(-1, 4, 4)
    made, steered = CPUAttentionBackendImpl.__init__, attention._steered_attention

    def with_sinks(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.sinks = sinks.clone()

    monkeypatch.setattr(CPUAttentionBackendImpl, "__init__", with_sinks)
    eager = modeling_gpt_oss.eager_attention_forward
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", eager)
    monkeypatch.setattr(attention, "_steered_attention", partial(steered, s_aux=sinks))
    family, model = FAMILIES["llava"], ReferenceModel(checkpoint("llava"))
    for layer in model.model.get_decoder().layers:
        layer.self_attn.sinks = sinks
    cases = [case for case in make_cases(family) if case.steering and case.steering.maps]
    cases.append(candidates(family))
    result = answer(checkpoint("llava"), family, cases)
    assert result["layers"] == {"full, sinks": 4}
    side_rows_are_row_n(result)
    for case, given in zip(cases, result["answers"], strict=True):
        asked = (case.text(family), case.images, case.steering)
        agree(given, model.generate(*asked, max_tokens=case.max_tokens, logprobs=20))
        maps = from_text(given["maps"])
        assert maps is not None
        total = maps.share("before") + maps.rest_before.sum(-1)
        assert total[:, 3].mean() < 0.9 < total[:, 0].mean(), "the last head's sink takes more"


@pytest.mark.parametrize("name", REFUSED)
def test_start_up_refuses(
    name: str, checkpoint: Callable[[str], Path], found: dict[str, Found]
) -> None:
    with pytest.raises(ValueError, match=FAMILIES[name].refused):
        answer(checkpoint(name), FAMILIES[name], make_cases(FAMILIES[name])[:1])
    found[name].refused = FAMILIES[name].refused


def test_start_up_refuses_rows_in_buffers_that_nobody_knows(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen3-VL adds features of the image by row number."""
    from adaptvis_vllm.engine import steps

    monkeypatch.setattr(steps, "MODEL_ROWS", ())
    cases = make_cases(FAMILIES["qwen3-vl"])[:1]
    with pytest.raises(ValueError, match=r"ends in an image; .*Qwen3VL"):
        answer(checkpoint("qwen3-vl"), FAMILIES["qwen3-vl"], cases)


def test_the_page_has_this_table(found: dict[str, Found]) -> None:
    """Of the families that ran; all of them ran where no test was deselected or failed."""
    rows = {n: family_table.row(FAMILIES[n], f) for n, f in found.items() if _complete(f)}
    whole = len(rows) == len(FAMILIES)
    if os.environ.get("ADAPTVIS_WRITE_TABLE"):
        assert whole, f"did not run or failed: {sorted(FAMILIES.keys() - rows.keys())}"
        family_table.write(list(rows.values()))
    table = family_table.read()
    missing = [row for row in rows.values() if row not in table]
    hint = "ADAPTVIS_WRITE_TABLE=1 pytest tests/families/test_families.py writes the table"
    assert not missing, "\n".join([hint, *missing])
    assert not whole or table == list(rows.values()), hint


def _complete(found: Found) -> bool:
    return bool(found.refused or (found.v1 and found.v2))
