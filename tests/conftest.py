"""Environment of every test process, set before anything imports vLLM."""

from __future__ import annotations

import os

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    HF_HUB_OFFLINE="1",
    TORCHDYNAMO_DISABLE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    OMP_NUM_THREADS="1",  # more only slow the tiny models down
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
    TOKENIZERS_PARALLELISM="false",
    RAY_USAGE_STATS_ENABLED="0",
)

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("support")

import support.garbage  # noqa: E402, F401  before vLLM
from support.skips import (  # noqa: E402, F401  hooks
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

# Files whose tests start engines of their own, or take long without one.
SLOW = {
    *("batch_ray", "serve_ray", "bench", "verify", "doctor_model", "families", "triton_stack"),
    *("calibration_cost", "calibration_models", "spatial", "readme", "video", "bad_rows"),
    *("kernel_aot", "kernel_cpu_build", "kernel_vllm", "kernel_sync"),
    *("parity", "pictures", "real_runs", "boxes", "settings"),
    *("choices", "sources"),
}
ENGINES = {"model", "engine", "generated", "url", "client", "guarded"}  # fixtures
# The longest first, so that processes side by side end together.
LONG = ("readme", "batch_ray", "serve_ray", "bench", "parity", "batch", "bad_rows")
# They ask one server, which lives in one of the processes.
ONE_SERVER = {
    *("server", "server_bad_requests", "server_refusals", "server_routes", "live_page"),
}


def _name(file: str) -> str:
    return Path(file).stem.removeprefix("test_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`quick`: no fixture of an engine, no file of SLOW."""
    for item in items:
        slow = _name(item.path.name) in SLOW
        if not slow and not ENGINES & set(getattr(item, "fixturenames", ())):
            item.add_marker("quick")
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(_name(item.path.name), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of `--dist loadfile`, for which files of ONE_SERVER are one."""
    from xdist.scheduler import LoadFileScheduling

    if config.getvalue("dist") != "loadfile":
        return None

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "one server" if _name(file) in ONE_SERVER else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny seeded LLaVA-1.5: 4 layers, 4 heads, 2 kv heads, 16 tokens an image."""
    from checkpoints.llava import make_llava

    return make_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSONL file of `cases.make_rows`, its images beside it."""
    from support.cases import make_rows, write_rows

    folder = tmp_path_factory.mktemp("rows")
    return write_rows(folder / "in.jsonl", make_rows(folder))


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Any]:
    """An in-process engine with small blocks and small chunks, prefix caching on."""
    from support.engine import close, make_llm

    llm = make_llm(model)
    yield llm
    close(llm)


@pytest.fixture(scope="session")
def generated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """(way, image) -> row, by `adaptvis generate`."""
    from support.http_server import generate_rows

    return generate_rows(tmp_path_factory.mktemp("generated"), model)


@pytest.fixture(scope="session")
def url(model: Path, generated: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`adaptvis serve` with adaptive defaults, one for all tests that ask a server.

    It starts after `adaptvis generate` has ended.
    """
    from support.http_server import SERVER, running

    with running(tmp_path_factory.mktemp("server"), model, *SERVER) as base:
        yield base


@pytest.fixture(scope="session")
def client(url: str) -> Any:
    import openai
    from support.waiting import HANG_S

    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=HANG_S)
