"""Two Serve replicas behind one endpoint, killed under load; vLLM's Ray executor."""

from __future__ import annotations

import base64
import json
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.batch_cases import FULL
from support.engine import close, generate, make_llm, prompt, sampling
from support.http_server import (
    QUESTION,
    assert_refused,
    environment,
    messages,
    post,
    serve_command,
)
from support.readme import MODEL, ROOT, URL, run, snippet
from support.serve_load import PICTURES, THINK_S, TOKENS, Answer, Load, ask
from support.waiting import HANG_S, until

from adaptvis_vllm import AdaptVis
from adaptvis_vllm.bench.serve import free_port
from adaptvis_vllm.engine.metrics import REQUESTS
from adaptvis_vllm.maps.maps import Maps
from adaptvis_vllm.serving.cluster.routing import picture_key

CLIENTS = 6
STEERING = AdaptVis(preset="controlled_a")


class Service:
    """`adaptvis serve MODEL --replicas 2`. more: options that win over those."""

    def __init__(self, model: Path, log: Path, *more: str, replicas: int = 2) -> None:
        port = free_port()
        self.log = log
        self.url = f"http://127.0.0.1:{port}/v1"
        # The README's command, for the tests' model.
        lines = snippet("sh", "pip install '.[ray]'\nadaptvis serve").splitlines()
        _, _, readmes, *chosen = shlex.split(lines[1])
        assert readmes == MODEL
        command = serve_command(model, port, *chosen, *more)
        with log.open("w") as out:
            self.process = psutil.Popen(
                command, env=environment(), stdout=out, stderr=subprocess.STDOUT, cwd=log.parent
            )
        ready = f"ready: {replicas} replicas"
        try:
            until(lambda: ready in log.read_text(), self.process, log)
        except AssertionError:
            if self.process.poll() is None:
                self.stop()
            raise

    def replicas(self) -> list[psutil.Process]:
        return self._named("ServeReplica:")

    def engines(self, among: list[psutil.Process] | None = None) -> list[psutil.Process]:
        """Engine core processes."""
        return self._named("EngineCore", among)

    def ranks(self) -> list[psutil.Process]:
        """Ray actors of a tensor-parallel engine."""
        return self._named("RayWorkerProc")

    def _named(self, name: str, among: list[psutil.Process] | None = None) -> list[psutil.Process]:
        found = []
        for process in among or self.process.children(recursive=True):
            try:
                if any(name in word for word in process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def stop(self) -> tuple[int, list[psutil.Process]]:
        """SIGTERM; (exit status, processes that are left)."""
        family = self.process.children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(HANG_S)
        _, alive = psutil.wait_procs(family, HANG_S)
        for process in alive:
            process.kill()
        return status, alive


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[int, Any]:
    """Picture -> output of an engine in this process, which is gone when this returns."""
    llm = make_llm(model)
    params = sampling(STEERING, max_tokens=TOKENS, ignore_eos=True)
    outputs = generate(llm, [prompt(n, QUESTION) for n in PICTURES], [params] * len(PICTURES))
    close(llm)
    return dict(zip(PICTURES, outputs, strict=True))


@pytest.fixture(scope="module")
def service(model: Path, expected: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    service = Service(model, tmp_path_factory.mktemp("serve") / "log")
    yield service
    if service.process.poll() is None:
        service.stop()


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=service.url, api_key="none", max_retries=0, timeout=HANG_S)


def assert_steered(answers: list[Answer], expected: dict[int, Any]) -> None:
    """Every answer that came is the one of `adaptvis generate`, whichever replica gave it."""
    for answer in answers:
        if answer.error is None:
            output = expected[answer.picture]
            assert answer.text == output.outputs[0].text
            theirs = output.adaptvis
            assert answer.report == {
                **theirs,
                "confidence": pytest.approx(theirs["confidence"], abs=1e-4),
            }


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("\ud800", 400),
        ("data:image/png;base64,\ud800", 400),
        ("http://127.0.0.1:9/picture.png", 422),
    ],
    ids=ascii,
)
def test_a_picture_that_cannot_be_had(service: Service, url: str, status: int) -> None:
    """The proxy passes it on, and the replica says so."""
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    answer = post(service.url.removesuffix("/v1"), "/v1/chat/completions", body)
    assert_refused(answer, ascii(url), (status,))


def test_a_picture_stays_with_a_replica(
    service: Service, client: openai.OpenAI, expected: dict[int, Any]
) -> None:
    """Its prefix is cached there. Both replicas have some of the pictures."""
    answers = [ask(client, picture, stream) for picture in PICTURES for stream in (False, True)]
    assert [a.error for a in answers] == [None] * len(answers)
    assert_steered(answers, expected)
    homes = {picture: {a.replica for a in answers if a.picture == picture} for picture in PICTURES}
    print(homes)
    scraped = httpx.get(f"{service.url.removesuffix('/v1')}/metrics").text
    counted = [
        sample.value
        for family in text_string_to_metric_families(scraped)
        for sample in family.samples
        if sample.name == f"{REQUESTS}_total"
    ]
    assert sum(counted) == len(answers)  # of both replicas
    assert all(len(replicas) == 1 for replicas in homes.values())


def test_the_readmes_client(service: Service, tmp_path: Path) -> None:
    program = snippet("python", "import base64").replace(MODEL, "tiny")
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    done = run(program.replace(URL, service.url.removesuffix("/v1")), tmp_path, "python")
    assert "'steered': True" in done.stdout, done.stderr


def test_the_page_that_looks(service: Service) -> None:
    """Replicas serve it, and what it asks for; `tests/look` uses it on one server."""
    base = service.url.removesuffix("/v1")
    answer = httpx.get(f"{base}/adaptvis/look", timeout=HANG_S)
    assert answer.status_code == 200
    assert "Where it looks" in answer.text
    assert httpx.get(f"{base}/adaptvis", timeout=HANG_S).json()["steerable"]
    xargs = {"adaptvis_alpha": 2.0, "adaptvis_maps": "all"}
    body = {"max_tokens": 2, "messages": messages(0), "vllm_xargs": xargs}
    answer = post(base, "/v1/chat/completions", body)
    maps = Maps.from_bytes(base64.b64decode(answer.json()["adaptvis_maps"]))
    assert maps.before.shape == (4, 4, 16)


def test_bad_parameters_are_vllms_400(service: Service, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="adaptvis_alpha"):
        client.completions.create(
            model="tiny", prompt="a", extra_body={"vllm_xargs": {"adaptvis_alpha": -1}}
        )


@pytest.mark.parametrize("victim", ["engine", "replica"] if FULL else ["engine"])
def test_a_process_is_killed_under_load(
    service: Service, expected: dict[int, Any], victim: str
) -> None:
    """At most the requests in flight on it fail, each with an error that clients retry."""
    with Load(service.url, CLIENTS) as load:
        load.wait_for(lambda answers: len(replicas(answers)) == 2)
        old = replicas(load.answers)
        (replica, *_) = service.replicas()
        family = [replica, *replica.children(recursive=True)]
        (process, *_) = service.engines(family) if victim == "engine" else family
        process.kill()
        killed = time.monotonic()
        load.think = THINK_S
        load.wait_for(lambda answers: replicas(answers) - old)
        back = time.monotonic()
        load.wait_for(lambda answers: len(replicas(answers, since=back)) == 2)
    errors = [answer for answer in load.answers if answer.error is not None]
    flying = [answer for answer in load.answers if answer.start < killed < answer.end]
    for answer in errors:
        print(f"after {answer.end - killed:.2f} s: {answer.error!r}"[:200])
    print(f"{victim}: {len(errors)} errors, {len(flying)} in flight, back in {back - killed:.1f} s")
    assert flying
    assert all(answer.retryable for answer in errors)
    assert len(errors) <= len(flying)
    assert_steered(load.answers, expected)
    assert len(service.replicas()) == len(service.engines()) == 2
    assert not any(old.is_running() for old in family)


def replicas(answers: list[Answer], since: float = 0) -> set[str | None]:
    """Those that answered."""
    return {a.replica for a in answers if a.start > since and a.error is None}


def test_stops(service: Service, client: openai.OpenAI) -> None:
    """SIGTERM lets a running request end, and leaves no process."""
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(ask, client, 0, stream=True, tokens=450, begun=begun)
        until(begun.is_set)
        status, alive = service.stop()
        print(last.result())
    assert last.result().error is None
    assert status == 0, service.log.read_text()[-4000:]
    assert not alive


def test_ranks_on_ray_inside_a_replica(
    model: Path, expected: dict[int, Any], tmp_path: Path
) -> None:
    """Each is a process of its own. Runs when the service above has stopped."""
    options = ("--tensor-parallel-size", "2", "--distributed-executor-backend", "ray")
    service = Service(model, tmp_path / "log", "--replicas", "1", *options, replicas=1)
    try:
        with openai.OpenAI(base_url=service.url, api_key="none", max_retries=0) as client:
            answers = [ask(client, picture) for picture in PICTURES]
        ranks = service.ranks()
    finally:
        status, alive = service.stop()
    assert [a.error for a in answers] == [None] * len(answers)
    assert_steered(answers, expected)
    assert len(ranks) == 2
    assert status == 0
    assert not alive


def test_picture_keys() -> None:
    def body(*parts: Any) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": list(parts)}]}).encode()

    def picture(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url}}

    words = {"type": "text", "text": "an image"}
    key = picture_key(body(picture("a"), words))
    assert key is not None
    assert key == picture_key(body(words, picture("a"), picture("b")))
    assert key != picture_key(body(picture("b"), picture("a")))
    for other in (
        body(words),
        b"",
        b"image",
        b'"image"',
        b"[" * 10**6 + b"image",
        body(picture("")),
    ):
        assert picture_key(other) is None
    assert picture_key(body(picture("\ud800"))) is not None  # JSON, and no UTF-8
