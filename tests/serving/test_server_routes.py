"""Routes below /adaptvis, the metrics, and the dashboard that shows them."""

from __future__ import annotations

import json
import math
import re
from argparse import Namespace
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.http_server import (
    DEFAULTS,
    HIGH,
    LOW,
    OFF,
    QUESTION,
    assert_refused,
    chat,
    data_uri,
    messages,
    options,
    post,
    report,
    text,
)
from support.waiting import HANG_S

from adaptvis_vllm.steering.fields import SPANS
from adaptvis_vllm.steering.report import MODE_CANDIDATES, MODE_OFF, nothing_to_steer

ALPHAS = [0.3, 1.0, 2.0, 3]
LONG = "The cat sat on the mat and the dog sat under the table. " * 2 + QUESTION
SWEEP = {"model": "tiny", "messages": messages(3, LONG), "max_tokens": 8, "alphas": ALPHAS}
DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "adaptvis.json"


def samples(url: str) -> dict[tuple[Any, ...], float]:
    """(name, sorted labels) -> value of everything on /metrics."""
    page = httpx.get(f"{url}/metrics", timeout=HANG_S)
    assert page.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def grown(before: dict[tuple[Any, ...], float], after: dict[tuple[Any, ...], float]) -> Any:
    """Our counters that changed."""
    return {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if key[0].startswith("adaptvis") and value != before.get(key, 0) and "_bucket" not in key[0]
    }


def requests(mode: str, branch: str, reason: str = "") -> tuple[Any, ...]:
    labels = {"mode": mode, "branch": branch, "reason": reason}
    return ("adaptvis_requests_total", *sorted(labels.items()))


def ask(client: openai.OpenAI, xargs: dict[str, Any], **more: Any) -> Any:
    """The sweep's question, alone."""
    return client.chat.completions.create(messages=SWEEP["messages"], **options(xargs, **more))


def test_every_series_is_there_from_the_start(url: str) -> None:
    """At 0, so that a query finds it before the first such request."""
    exported = samples(url)
    asked = [("off", "none", MODE_OFF), ("adaptive", "low", ""), ("adaptive", "high", "")]
    asked += [("scaling", "given", ""), ("candidates", "none", MODE_CANDIDATES)]
    modes = ("adaptive", "scaling", "candidates")
    asked += [(m, "none", nothing_to_steer(s)) for m in modes for s in SPANS]
    assert {requests(*kind) for kind in asked} <= exported.keys()


def test_info(url: str, client: openai.OpenAI) -> None:
    chat(client, 0, {"adaptvis_alpha": 1.5})
    info = httpx.get(f"{url}/adaptvis", timeout=HANG_S).json()
    assert info["model"] == "tiny"
    assert info["steerable"]
    assert info["defaults"]["mode"] == "adaptive"
    assert info["defaults"]["alpha_low"] == DEFAULTS.alpha_low
    assert info["backend"] == {
        "device": "cpu",
        "attention": "CPU_ATTN",
        "model_runner": "v1",
        "dtype": "float32",
        "kv_cache_dtype": "auto",
    }
    assert info["versions"]["adaptvis-vllm"]
    assert info["versions"]["vllm"].startswith("0.")
    assert info["limits"]["layers"] == {"min": 0, "max": 3}
    assert info["limits"]["candidates"] == {"min": 1, "max": 2}
    assert "controlled_a" in info["limits"]["preset"]
    (given,) = [c for c in info["counters"]["requests"] if c["branch"] == "given"]
    assert given["mode"] == "scaling"
    assert given["count"] == samples(url)[requests("scaling", "given")]


def test_sweep(url: str, client: openai.OpenAI) -> None:
    """Each row is the answer of a request of its own; the prompt is computed once."""
    before = samples(url)
    answer = post(url, "/adaptvis/sweep", SWEEP)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["rows"]
    assert [row["alpha"] for row in rows] == [None, *ALPHAS]
    for row in rows:
        xargs = OFF if row["alpha"] is None else {"adaptvis_alpha": row["alpha"]}
        alone = ask(client, xargs, logprobs=True, top_logprobs=1)
        best = alone.choices[0].logprobs.content[0].top_logprobs[0].logprob
        assert row["text"] == text(alone)
        assert row["confidence"] == pytest.approx(math.exp(best), abs=1e-4)
        assert row["steered"] == (row["alpha"] is not None)
        assert row["finish_reason"] == alone.choices[0].finish_reason
    assert len({row["text"] for row in rows}) > 1
    # Blocks of 32 tokens: all before the one of the last prompt token come from the cache.
    shared = (rows[0]["prompt_tokens"] - 1) // 32 * 32
    assert shared >= 16  # the image's tokens are among them
    assert [row["cached_tokens"] for row in rows[1:]] == [shared] * len(ALPHAS)
    # And the engine's own count agrees, whatever the first request found in the cache.
    after = samples(url)
    name = ("vllm:prompt_tokens_cached_total", ("engine", "0"), ("model_name", "tiny"))
    alone_cached = len(rows) * shared  # the requests that were made one by one
    swept = rows[0]["cached_tokens"] + len(ALPHAS) * shared
    assert after[name] - before.get(name, 0) == swept + alone_cached
    assert rows[1]["confidence"] != rows[0]["confidence"]
    alike = [row for row in rows if row["alpha"] == 1.0]
    assert alike[0]["text"] == rows[0]["text"]


def test_sweep_of_a_question(url: str) -> None:
    """The short form is the same request; so is the order of images."""
    short = {"question": LONG, "image": data_uri(3), "alphas": ALPHAS, "max_tokens": 8}
    long = post(url, "/adaptvis/sweep", SWEEP).json()
    for body in (short, {**short, "image": None, "images": [data_uri(3)]}):
        answer = post(url, "/adaptvis/sweep", body).json()
        assert [row["text"] for row in answer["rows"]] == [row["text"] for row in long["rows"]]


def test_sweep_of_layers(url: str, client: openai.OpenAI) -> None:
    xargs = {"adaptvis_layers": "1-2", "adaptvis_span": "interval"}
    answer = post(url, "/adaptvis/sweep", {**SWEEP, "alphas": [3.0], "vllm_xargs": xargs}).json()
    alone = ask(client, {**xargs, "adaptvis_alpha": 3.0})
    assert answer["rows"][1]["text"] == text(alone)
    whole = post(url, "/adaptvis/sweep", {**SWEEP, "alphas": [3.0]}).json()
    assert answer["rows"][1]["confidence"] != whole["rows"][1]["confidence"]


def test_a_sweep_of_one_token_is_one_request(url: str) -> None:
    """Where the engine has room: here for two. Its rows are those of separate requests."""
    two = {**SWEEP, "alphas": [3.0, 0.3, 3.0], "max_tokens": 1}
    before = samples(url)
    together = post(url, "/adaptvis/sweep", two)
    assert together.status_code == 200, together.text
    assert grown(before, samples(url)) == {
        requests("candidates", "none", MODE_CANDIDATES): 1,
        ("adaptvis_side_rows_total",): 2,
    }
    one_by_one = [
        {**two, "alphas": [3.0, 0.3, 3.0, 1.5]},  # no room
        {**two, "logit_bias": {}},  # might change the token
    ]
    for body in one_by_one:
        before = samples(url)
        apart = post(url, "/adaptvis/sweep", body).json()["rows"]
        assert requests("scaling", "given") in grown(before, samples(url))
        for row, other in zip(together.json()["rows"], apart, strict=False):
            for name in ("alpha", "text", "finish_reason", "steered", "reason", "prompt_tokens"):
                assert row[name] == other[name], name
            assert row["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
    length = together.json()["rows"][0]["prompt_tokens"]
    assert [r["cached_tokens"] for r in together.json()["rows"][1:]] == [length - 1] * 3
    assert together.json()["usage"]["prompt_tokens"] == length
    none = post(url, "/adaptvis/sweep", {"question": "?", "alphas": [2.0], "max_tokens": 1})
    assert [row["reason"] for row in none.json()["rows"]] == ["mode off", "no image"]


def test_sweep_without_image(url: str) -> None:
    answer = post(url, "/adaptvis/sweep", {"question": "?", "alphas": [2.0], "max_tokens": 2})
    assert [row["reason"] for row in answer.json()["rows"]] == ["mode off", "no image"]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("alphas", {"alphas": None}),
        ("alphas", {"alphas": []}),
        ("alphas", {"alphas": 2.0}),
        ("alphas", {"alphas": [1.0] * 65}),
        ("alphas", {"alphas": ["0.5"]}),
        ("alphas", {"alphas": [True]}),
        ("alphas[1]", {"alphas": [1.0, 0.0]}),
        ("alphas[0]", {"alphas": [float("nan")]}),
        ("alphas[0]", {"alphas": [1000]}),
        ("messages", {"messages": None}),
        ("messages", {"messages": []}),
        ("question", {"question": "?"}),
        ("image", {"image": "http://127.0.0.1:9/a.png"}),
        ("image", {"messages": [], "question": "?", "image": "a", "images": ["b"]}),
        ("images", {"messages": [], "question": "?", "images": "b"}),
        ("stream", {"stream": True}),
        ("n ", {"n": 2}),
        ("use_beam_search", {"use_beam_search": True}),
        ("adaptvis_alpha", {"vllm_xargs": {"adaptvis_alpha": 2.0}}),
        ("adaptvis_mode", {"vllm_xargs": {"adaptvis_mode": "off"}}),
        ("adaptvis_layers", {"vllm_xargs": {"adaptvis_layers": "0-99"}}),
        ("adaptvis_span", {"vllm_xargs": {"adaptvis_span": "frames"}}),
        ("adaptvis_alpha", {"adaptvis_alpha": 2.0}),
        ("max_tokens", {"max_tokens": "x"}),
    ],
)
def test_a_bad_sweep_is_refused(url: str, field: str, change: dict[str, Any]) -> None:
    assert_refused(post(url, "/adaptvis/sweep", {**SWEEP, **change}), field)


def test_a_sweep_of_another_model(url: str) -> None:
    assert_refused(post(url, "/adaptvis/sweep", {**SWEEP, "model": "huge"}), "huge", (404,))


def test_the_routes_ask_for_the_api_key() -> None:
    """vLLM's own check covers /v1 only."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from adaptvis_vllm.serving.endpoints import pages, router

    app = FastAPI()
    app.state.args = Namespace(api_key=["secret"])
    app.include_router(router)
    asker = TestClient(app, raise_server_exceptions=False)
    app.include_router(pages)
    opened = asker.get("/adaptvis/look")  # by a browser, which sends none
    assert (opened.status_code, "secret" in opened.text) == (200, False)
    assert opened.headers["content-type"].startswith("text/html")
    for key, refused in ((None, True), ("other", True), ("secret", False)):
        head = {} if key is None else {"Authorization": f"Bearer {key}"}
        for answer in (
            asker.get("/adaptvis", headers=head),
            asker.post("/adaptvis/sweep", headers=head, json={}),
        ):
            assert (answer.status_code == 401) == refused


def test_counters_equal_the_requests(url: str, client: openai.OpenAI) -> None:
    """Across both API server processes."""
    before = samples(url)
    with ThreadPoolExecutor(8) as pool:
        adaptive = list(pool.map(lambda image: report(chat(client, image, None)), range(10)))
        scaling = list(pool.map(lambda i: chat(client, i, {"adaptvis_alpha": 2.0}), range(4)))
        list(pool.map(lambda i: list(chat(client, i, OFF, stream=True)), range(3)))
    chat(client, None, None)
    chat(client, None, {"adaptvis_alpha": 2.0})
    chat(client, 0, {"adaptvis_span": "video"})
    chat(client, 0, {"adaptvis_alpha": 2.0, "adaptvis_span": "video"})
    several = chat(client, 1, None, n=2, temperature=1.0, seed=1)
    chat(client, 0, {"adaptvis_candidates": "0.5,2"}, n=2, temperature=1.0)
    chat(client, 0, {"adaptvis_candidates": 0.5})
    chat(client, None, {"adaptvis_candidates": 0.5})
    assert len(scaling) == 4
    refused = [{"adaptvis_alpha": 0}, {"adaptvis_alpha": "x"}, {"adaptvis_treshold": 0.5}]
    for xargs in refused:
        with pytest.raises(openai.BadRequestError):
            chat(client, 0, xargs, stream=True)
    with pytest.raises(openai.BadRequestError):
        chat(client, 0, None, extra_body={"adaptvis_alpha": 2.0})

    reports = adaptive + [report(several)] * 2
    branches = Counter("low" if r["alpha"] == LOW else "high" for r in reports)
    assert set(branches) == {"low", "high"}
    assert {r["alpha"] for r in reports} == {LOW, HIGH}
    changed = grown(before, samples(url))
    confidences = changed.pop(("adaptvis_confidence_sum",))
    assert confidences == pytest.approx(sum(r["confidence"] for r in reports), abs=1e-3)
    assert changed == {
        requests("adaptive", "low"): branches["low"],
        requests("adaptive", "high"): branches["high"],
        requests("adaptive", "none", "no image"): 1,
        requests("adaptive", "none", "no video"): 1,
        requests("scaling", "given"): 4,
        requests("scaling", "none", "no image"): 1,
        requests("scaling", "none", "no video"): 1,
        requests("candidates", "none", MODE_CANDIDATES): 3,
        requests("candidates", "none", "no image"): 1,
        requests("off", "none", "mode off"): 3,
        ("adaptvis_confidence_count",): 12,
        ("adaptvis_side_rows_total",): 24 + 5,
        ("adaptvis_refused_requests_total", ("parameter", "alpha")): 2,
        ("adaptvis_refused_requests_total", ("parameter", "unknown")): 2,
    }


def test_every_process_answers_the_same(url: str) -> None:
    """A scrape of either has the sum: new connections reach both."""
    pages = [
        {k: v for k, v in samples(url).items() if k[0].startswith("adaptvis")} for _ in range(6)
    ]
    assert all(page == pages[0] for page in pages)


def test_the_dashboard_shows_what_is_exported(url: str) -> None:
    """Every metric in its queries is on /metrics; what it says of labels is true."""
    dashboard = json.loads(DASHBOARD.read_text())
    exported = samples(url)
    names = {key[0] for key in exported}
    labels = {name for key in exported for name, _ in key[1:]}
    assert dashboard["title"]
    exprs = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(exprs) >= 8
    used = set()
    for expr in exprs:
        found = set(re.findall(r"\b(?:adaptvis_|vllm:|http_)\w+", expr))
        assert found, expr
        assert found <= names, (expr, found - names)
        grouped = re.findall(r"\bby \(([^)]*)\)", expr)
        assert {n.strip() for group in grouped for n in group.split(",")} <= labels, expr
        used |= found
    ours = {n for n in names if n.startswith("adaptvis_") and not n.endswith("_created")}
    assert {n.removesuffix("_sum").removesuffix("_count") for n in ours} - {
        n.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for n in used
    } <= {"adaptvis_confidence_bucket"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
