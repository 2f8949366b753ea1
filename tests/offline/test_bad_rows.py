"""A bad row hurts nobody else: by every entrance, refused for every reason, at every moment.

Bad rows are about pictures that good rows ask about too. ADAPTVIS_TEST_ROWS=1000: 300 rows, 30 of
them bad; else fewer.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints.images import make_image
from support.bad_requests import REFUSALS, ROWS, STEERINGS, asked, bad_requests
from support.batch_cases import ENGINE, FULL, IMAGES, good_row, make_images, mixed, read, run
from support.commands import apart, here
from support.engine import close, generate, make_llm, prompt, sampling, tokens
from vllm import SamplingParams

from adaptvis_vllm import ScalingVis, cli
from adaptvis_vllm.engine.bounds import check_completed, max_tokens_max
from adaptvis_vllm.files.lines import read_lines
from adaptvis_vllm.offline.runner import RowRunner
from adaptvis_vllm.steering.words import BadParameter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    make_images(folder)
    return folder


@pytest.fixture(scope="module")
def file(folder: Path) -> tuple[Path, dict[int, str]]:
    path, reasons = mixed(folder, ROWS, 0.1)
    assert len(set(reasons.values())) >= 15
    return path, reasons


@pytest.fixture(scope="module")
def expected(engine: Any, folder: Path, file: tuple[Path, dict[int, str]]) -> dict[int, Any]:
    """What an engine answers that is asked the good rows alone."""
    good = [number for number in range(ROWS) if number not in file[1]]
    answers = RowRunner(engine, folder).run(map(good_row, good))
    return dict(zip(good, answers, strict=True))


@pytest.fixture(scope="module")
def right(engine: Any) -> list[Any]:
    """By picture, from an engine that was asked nothing else."""
    return [generate(engine, [prompt(n)], sampling(STEERINGS[n % 3]))[0] for n in range(20)]


def check(rows: list[dict[str, Any]], reasons: dict[int, str], expected: dict[int, Any]) -> None:
    """Exactly the bad rows are error rows, and the others' answers are right."""
    assert len(rows) == ROWS
    wrong = {number for number, row in enumerate(rows) if row["error"] is not None}
    assert wrong == set(reasons), [rows[n] for n in wrong ^ set(reasons)]
    for number, reason in reasons.items():
        assert reason in rows[number]["error"]
        assert rows[number]["text"] is None
    for number, right in expected.items():
        row = rows[number]
        assert (row["id"], row["text"], row["token_ids"]) == (
            number,
            right["text"],
            right["token_ids"],
        )
        assert row["adaptvis"] == pytest.approx(right["adaptvis"], abs=1e-4)
    print(f"{len(expected)} right answers, {len(reasons)} error rows")


def test_in_process(
    engine: Any, folder: Path, file: tuple[Path, dict[int, str]], expected: dict[int, Any]
) -> None:
    engine.llm_engine.reset_mm_cache()
    check(list(RowRunner(engine, folder).run(read_lines(file[0]))), file[1], expected)


def test_given_up_is_no_answer(engine: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine core ends with "error" is an error row, in both formats of a batch too."""
    from adaptvis_vllm.batch.openai import OpenAIFormat
    from adaptvis_vllm.offline.engine import VllmEngine
    from adaptvis_vllm.offline.format import RowFormat
    from adaptvis_vllm.offline.stream import EngineFailed

    step, ended = engine.llm_engine.step, []

    def failing() -> list[Any]:
        outputs = step()
        for output in outputs:
            if output.finished and output.request_id not in ended and not len(ended) % 2:
                output.outputs[0].finish_reason, output.outputs[0].text = "error", ""
                ended.append(output.request_id)
            elif output.finished:
                ended.append(output.request_id)
        return outputs

    monkeypatch.setattr(engine.llm_engine, "step", failing)
    rows = list(RowRunner(engine, folder).run(good_row(n) for n in (1, 2)))
    assert sorted(row["error"] is None for row in rows) == [False, True]
    (given_up,) = [row for row in rows if row["error"] is not None]
    assert "finish_reason 'error'" in given_up["error"]
    assert given_up["text"] is None

    batch = VllmEngine.__new__(VllmEngine)
    output = SimpleNamespace(outputs=[SimpleNamespace(finish_reason="error")])
    for batch.format in (RowFormat(engine, folder, None, {}), OpenAIFormat(engine)):
        with pytest.raises(EngineFailed, match="finish_reason 'error'") as caught:
            batch.answer(None, output)
        refused = batch.refuse({"id": 1, "custom_id": "1"}, caught.value)
        assert "finish_reason 'error'" in (refused.error or "")
    assert refused.row["response"]["status_code"] == 500


def bad_questions(picture: str) -> list[tuple[dict[str, Any] | str, str]]:
    """(row or line of own data, what its reason names)."""
    asked = {"image": picture, "question": "Where?", "answer": "left"}
    several = {"question": "Where?", "answer": "left"}
    return [
        (asked | {"prompt": "USER: Where? ASSISTANT:"}, "placeholder"),
        (asked | {"question": "word " * 123}, "512"),
        (several | {"images": [picture, "19.png", "18.png", "17.png"]}, "At most 3 image"),
        (several | {"images": [picture, "19.png"], "prompt": "<image>?"}, "placeholder"),
        (asked | {"question": "word " * 600}, "512"),
        (asked | {"image": "absent.png"}, "no such file"),
        (asked | {"image": "broken.png"}, "no readable image"),
        (asked | {"image": "short.png"}, "no readable image"),
        (asked | {"image": "http://127.0.0.1:9/x.png"}, "image"),
        (asked | {"image": "data:image/png;base64,@@"}, "image"),
        (asked | {"image": None}, "image is null"),
        (asked | {"question": 3}, "question must be"),
        (asked | {"answer": None}, "answer must be"),
        (asked | {"choices": [1]}, "choices must be"),
        ("{not json", "not JSON"),
        ("[1, 2]", "object"),
    ]


def test_eval(engine: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own data: the figures and answers are those of the good questions alone."""
    monkeypatch.setattr("adaptvis_vllm.evaluation.command.make_llm", lambda args: engine)
    kinds = bad_questions("")
    count = ROWS // 10 if FULL else len(kinds)
    clean, lines, reasons = [], [], []
    for number in range(ROWS):
        picture = f"{number % IMAGES}.png"
        row = {"id": number, "image": picture, "question": f"Where? {number}", "answer": "on"}
        if number % 3 == 0 and len(reasons) < count:
            bad, reason = bad_questions(picture)[len(reasons) % len(kinds)]
            bad = bad if isinstance(bad, str) else json.dumps({"id": f"bad {number}"} | bad)
            lines.append(bad)
            reasons.append(reason)
        else:
            lines.append(json.dumps(row))
            clean.append(lines[-1])
    found = []
    for name, written, code in (("clean", clean, 0), ("questions", lines, 3)):
        (folder / f"{name}.jsonl").write_text("\n".join(written))
        engine.llm_engine.reset_mm_cache()
        out = folder / f"{name}.json"
        words = ("--data", folder / f"{name}.jsonl", "--model", "tiny", "-o", out)
        words += ("--alpha", 3, "--max-tokens", 3)
        assert cli.main(["eval", *map(str, words)]) == code
        found.append(json.loads(out.read_text()))
    assert found[1]["answers"] == found[0]["answers"]
    assert len(found[1]["answers"]) == ROWS - count
    told = [error["error"] for error in found[1]["errors"]]
    assert len(told) == count
    assert all(any(reason in one for one in told) for reason in reasons)
    print(f"{ROWS - count} right answers, {count} rows left out")


# ---- engines in Python ----------------------------------------------------------------


def test_parameters_come_before_pictures(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is rendered, nor queued, of a call with a wrong parameter in it."""
    rendered = []
    renderer = engine.llm_engine.renderer
    process = renderer._process_multimodal
    monkeypatch.setattr(
        renderer, "_process_multimodal", lambda *a, **k: rendered.append(1) or process(*a, **k)
    )
    chats = [[{"role": "user", "content": [{"type": "image_pil", "image_pil": make_image(0)}]}]]
    for options in (
        {"extra_args": {"adaptvis_alpha": -1}},
        {"extra_args": ScalingVis(2.0, layers="9").extra_args()},
        {"seed": 2**64},
    ):
        params = [asked(), asked(**options)]
        for call in (
            lambda params=params: engine.generate([prompt(0), prompt(1)], params, use_tqdm=False),
            lambda params=params: engine.enqueue([prompt(0), prompt(1)], params, use_tqdm=False),
            lambda params=params: engine.chat(chats * 2, params, use_tqdm=False),
            lambda params=params: engine.enqueue_chat(chats * 2, params, use_tqdm=False),
        ):
            with pytest.raises(ValueError, match=r"adaptvis_alpha|adaptvis_layers|seed"):
                call()
    assert not rendered
    assert not engine.llm_engine.has_unfinished_requests()
    generate(engine, [prompt(0)], sampling())
    assert rendered


# ---- numbers --------------------------------------------------------------------------


def test_the_ends_of_the_ranges(engine: Any) -> None:
    """What is still allowed is answered by Model Runner V1, and `n` > 1 counts the seed up."""
    most = max_tokens_max(engine.llm_engine.vllm_config)
    for options in (
        {"seed": 2**63 - 1},
        {"seed": -(2**63)},
        {"seed": 2**63 - 3, "n": 3},
        {"seed": -1},  # none, for vLLM
        {"max_tokens": most, "stop_token_ids": list(range(300)), "seed": 0},
        {"top_k": 2**63, "seed": 0},
    ):
        (answer,) = generate(engine, [prompt(0)], sampling(temperature=1.0, **options))
        assert all(choice.token_ids for choice in answer.outputs)
    with pytest.raises(ValueError, match=f"max_tokens must be .* from 1 to {most}, not {most + 1}"):
        generate(engine, [prompt(0)], sampling(max_tokens=most + 1))


def test_the_ends_of_the_ranges_on_v2(model: Path, tmp_path: Path) -> None:
    """The same rows on Model Runner V2."""
    most = 2**31 - 1 - 32
    rows: list[dict[str, Any]] = [
        {"seed": 2**63 - 1, "temperature": 1},
        {"seed": 2**63, "temperature": 1},
        {"max_tokens": most},
        {"max_tokens": most + 1},
    ]
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Hi", "max_tokens": 2} | r) + "\n" for r in rows))
    files = ("--model", model, "--input", path, "--output", out)
    run("generate", "--runner", "v2", *files, *ENGINE, "--max-model-len", 32, code=3)
    answers = read(out)
    assert [row["error"] is None for row in answers] == [True, False, True, False]


def test_lists_on_v2() -> None:
    """Model Runner V2 has room for so many tokens a request; V1 takes what vLLM takes."""

    def config(v2: bool) -> Any:
        return SimpleNamespace(use_v2_model_runner=v2)

    many = SamplingParams(min_tokens=1, stop_token_ids=list(range(129)))
    words = SamplingParams()
    words._bad_words_token_ids = [[1] * 513, [2] * 512]
    for name, params in {
        "allowed_token_ids": SamplingParams(allowed_token_ids=list(range(1025))),
        "logit_bias": SamplingParams(logit_bias=dict.fromkeys(range(1025), 1.0)),
        "stop_token_ids": many,
        "bad_words": words,
    }.items():
        check_completed(params, config(False))
        with pytest.raises(BadParameter, match=f"{name} must come to at most 1.* tokens"):
            check_completed(params, config(True))
    many.min_tokens = 0
    check_completed(many, config(True))


# ---- other engines: last, they end what this process's engine needs ----------------------


@pytest.mark.usefixtures("right")  # of this process's engine
@pytest.mark.parametrize("processes", [1, 2] if FULL else [1])
def test_generate(
    processes: int,
    model: Path,
    file: tuple[Path, dict[int, str]],
    expected: dict[int, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", str(processes - 1))
    out = tmp_path / "out.jsonl"
    files = ("--model", model, "--input", file[0], "--output", out)
    run("generate", *files, *ENGINE, code=3, by=here)
    check(read(out), file[1], expected)


@pytest.mark.parametrize("workers", [0, 1, 2] if FULL else [0])
def test_batch(
    workers: int,
    model: Path,
    file: tuple[Path, dict[int, str]],
    expected: dict[int, Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out.jsonl"
    words = ("batch", file[0], "-o", out, "--workers", workers, "--model", model)
    run(*words, *ENGINE, code=3, by=apart if workers else here)
    check(read(out), file[1], expected)


def test_llm_in_two_processes(
    right: list[Any],
    model: Path,
    folder: Path,
    file: tuple[Path, dict[int, str]],
    expected: dict[int, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error, or the right answer: never an empty one. In one call and in one after the other,
    and of rows."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    llm = make_llm(model)
    try:
        check(list(RowRunner(llm, folder).run(read_lines(file[0]))), file[1], expected)
        for picture, (item, options, reason) in enumerate(bad_requests().values()):
            data = item.get("multi_modal_data", {}).get("image")
            count = len(data) if isinstance(data, list) else 1
            images = [make_image(picture)] * count
            item = {**item, "multi_modal_data": {"image": images}}
            good, params = prompt(picture), sampling(STEERINGS[picture % 3])
            with pytest.raises(REFUSALS, match=reason):
                generate(llm, [item], asked(**options))
            with pytest.raises(REFUSALS, match=reason):
                generate(llm, [good, item, good], [params, asked(**options), params])
            for answer in generate(llm, [good, good], params):
                assert answer.outputs[0].finish_reason in ("stop", "length")
                assert tokens(answer) == tokens(right[picture])
                assert answer.adaptvis == pytest.approx(right[picture].adaptvis, abs=1e-5)
    finally:
        close(llm)
