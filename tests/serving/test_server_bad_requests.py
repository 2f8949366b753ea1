"""A bad request hurts nobody else: refused for every reason, among good ones about its picture.

ADAPTVIS_TEST_ROWS=1000: 300 requests, 30 of them bad; else fewer.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.bad_requests import ROWS, STEERINGS
from support.batch_cases import FULL
from support.engine import generate, prompt, sampling, tokens
from support.http_server import OFF, QUESTION, data_uri, messages, post

PICTURES = range(300, 320)  # of which the server has not heard yet


def refused_bodies(number: int) -> list[dict[str, Any]]:
    """What a chat request about a picture is refused for, before and after it is rendered."""

    def pictures(*urls: str, text: str = QUESTION) -> dict[str, Any]:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]}

    uri = data_uri(number)
    return [
        pictures("data:image/png;base64,AAAA"),
        pictures(uri, uri[:200]),
        pictures(uri, "http://127.0.0.1:9/x.png"),
        pictures(uri, uri, uri, uri),
        pictures(uri, text="word " * 600),
        pictures(uri, text="word " * 123),
        {"vllm_xargs": {"adaptvis_alpha": -1}},
        {"vllm_xargs": {"adaptvis_alpha": 2.0, "adaptvis_layers": "9"}},
        {"vllm_xargs": {"adaptvis_alfa": 2.0}},
        {"adaptvis_alpha": 2.0},
        {"max_tokens": 0},
        {"max_tokens": 600},
        {"min_tokens": 9},
        {"top_k": 2**70, "temperature": 1},
        {"seed": 2**64},
        {"seed": 2**63 - 1, "n": 2, "temperature": 1},
        {"stop_token_ids": [10**6]},
        {"logit_bias": {"1000000": 1}},
        {"allowed_token_ids": []},
        {"logprobs": True, "top_logprobs": 21},
        {"bad_words": [f"word {word}" for word in range(200)]},
        {"stop": ["\ud800"]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 1}}},
        {"temperature": 3},
        {"model": "another"},
        {"cache_salt": ""},
    ]


def test_bad_ones_among_good_ones(url: str, engine: Any) -> None:
    """All at once: no 5xx."""
    right = {n: generate(engine, [prompt(n)], sampling(STEERINGS[n % 3]))[0] for n in PICTURES}
    kinds = len(refused_bodies(0))
    count = ROWS // 10 if FULL else kinds
    requests: list[tuple[bool, int, dict[str, Any]]] = [
        (True, PICTURES[n % len(PICTURES)], {}) for n in range(ROWS)
    ]
    for kind in range(count):
        picture = requests[3 * kind][1]
        requests[3 * kind] = (False, picture, refused_bodies(picture)[kind % kinds])

    def ask(request: tuple[bool, int, dict[str, Any]]) -> Any:
        good, number, body = request
        steering = STEERINGS[number % 3]
        base = {"model": "tiny", "max_tokens": 8, "temperature": 0, "messages": messages(number)}
        if good:
            base["vllm_xargs"] = steering.extra_args() if steering else OFF
        return post(url, "/v1/chat/completions", {**base, "return_token_ids": True, **body})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, requests))
    for (good, number, body), answer in zip(requests, answers, strict=True):
        assert answer.status_code < 500, (body, answer.text)
        assert (answer.status_code == 200) is good, (body, answer.text)
        if good:
            choice = answer.json()["choices"][0]
            assert choice["token_ids"] == tokens(right[number])[0]
    print(f"{ROWS - count} right answers, {count} refused with 4xx")
