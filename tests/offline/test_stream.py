"""What a failed step costs, who is blamed for it, and that nobody waits for ever."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from support.stream_engine import CountingEngine, Rows

from adaptvis_vllm.batch import actor
from adaptvis_vllm.batch.actor import EngineThread
from adaptvis_vllm.offline import stream
from adaptvis_vllm.offline.search import SICK
from adaptvis_vllm.offline.stream import Answer, EngineFailed, Stream

ROWS = 400


class AtOnce:
    """Stands for the threads that load pictures: steps do not depend on how fast they are."""

    def __init__(self, _workers: int) -> None: ...

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "ThreadPoolExecutor", AtOnce)


def answers(engine: Any, rows: int = ROWS, alone: Any = ()) -> dict[int, Answer]:
    """Every row once."""
    found = list(Stream(engine).run(Rows(range(rows), alone)))
    assert sorted(tag for tag, _ in found) == list(range(rows))
    return dict(found)


def errors(found: dict[int, Answer]) -> set[int]:
    return {row for row, answer in found.items() if answer.error is not None}


def guilty(rows: set[int], token: int = 1) -> Callable[[int, list[tuple[int, int]]], bool]:
    """A step fails that is about this token of one of them."""
    return lambda _, now: any(row in rows and at == token for row, at in now)


@pytest.fixture(scope="module")
def undisturbed() -> int:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "ThreadPoolExecutor", AtOnce)
        engine = CountingEngine()
        assert not errors(answers(engine))
    assert engine.steps == 255
    return engine.steps


def test_one_failed_step(undisturbed: int) -> None:
    """Whenever it is: a tenth more steps at most, one new engine, and nobody is blamed."""
    for at in (*range(1, 20), *range(20, 230, 3), *range(230, undisturbed + 1)):
        engine = CountingEngine(lambda step, _, at=at: step == at)
        assert not errors(answers(engine)), at
        assert engine.steps <= 1.1 * undisturbed, at
        assert engine.rebuilt == 1
        assert engine.most_held <= 2 * engine.window + 2 * stream.LOADERS


def test_a_row_that_fails_in_its_first_step(undisturbed: int) -> None:
    """It is found, for a tenth more steps at most, wherever it is in the input."""
    for row in (*range(0, ROWS, 7), *range(16), *range(ROWS - 24, ROWS)):
        engine = CountingEngine(guilty({row}))
        found = answers(engine)
        assert errors(found) == {row}
        assert "on this row alone" in (found[row].error or "")
        assert engine.steps <= 1.1 * undisturbed, row
        assert engine.rebuilt <= 5


@pytest.mark.parametrize("token", [2, 5, 9])
def test_a_row_that_fails_later(undisturbed: int, token: int) -> None:
    """It is found by the token at which it fails; each try costs the steps until then."""
    total = 0
    for row in range(0, ROWS, 7):
        engine = CountingEngine(guilty({row}, token))
        assert errors(answers(engine)) == {row}
        assert engine.rebuilt <= 5
        total += engine.steps - undisturbed
    assert total / len(range(0, ROWS, 7)) <= 0.15 * undisturbed


@pytest.mark.parametrize("count", [2, 5, 40])
@pytest.mark.parametrize("token", [1, 5])
def test_many_bad_rows(count: int, token: int) -> None:
    """All of them are found, and only they."""
    bad = set(random.Random(count).sample(range(ROWS), count))
    engine = CountingEngine(guilty(bad, token))
    assert errors(answers(engine)) == bad
    assert engine.rebuilt <= 6 * count


@pytest.mark.parametrize("first", [0, 10, ROWS - 4])
def test_neighbours(first: int) -> None:
    bad = set(range(first, first + 4))
    assert errors(answers(CountingEngine(guilty(bad)))) == bad


def test_an_engine_that_always_fails() -> None:
    engine = CountingEngine(lambda *_: True)
    done = []
    with pytest.raises(RuntimeError, match=f"{SICK} rows alone.*wrong"):
        done += list(Stream(engine).run(Rows(range(ROWS))))
    assert len(done) < SICK
    assert engine.rebuilt <= 12


def test_an_engine_that_fails_when_it_is_full() -> None:
    """No row is to blame: the job stops instead of trying for ever."""
    engine = CountingEngine(lambda _, now: len(now) > 8)
    with pytest.raises(RuntimeError, match="times without finishing a row"):
        answers(engine)


def test_rows_that_killed_processes() -> None:
    """Each runs alone, when the engine has nothing else to do, and costs the others nothing."""
    alone = {3, 50, 51, 399}
    told: list[tuple[list[int], bool]] = []
    engine = CountingEngine()
    running = Stream(engine, lambda tags, lonely: told.append((list(tags), lonely)))
    order = [tag for tag, _ in running.run(Rows(range(ROWS), alone))]
    assert set(order[-4:]) == alone
    assert {tags[0] for tags, lonely in told if lonely} == alone
    assert all(len(tags) == 1 for tags, lonely in told if lonely)
    assert engine.steps <= 255 + sum(engine.length(row) for row in alone)


def test_an_output_that_is_no_answer() -> None:
    """Its row is an error row, the engine goes on."""

    class Engine(CountingEngine):
        def answer(self, prepared: int, output: int) -> Answer:
            if prepared == 7:
                raise EngineFailed("given up")
            return super().answer(prepared, output)

    engine = Engine()
    found = answers(engine)
    assert errors(found) == {7}
    assert found[7].error == "given up"
    assert engine.rebuilt == 0


def test_the_last_row_runs_again() -> None:
    """One failure is no proof against a row that happened to be the only one."""
    engine = CountingEngine(lambda step, _: step == 1)
    assert not errors(answers(engine, rows=1))


# ---- the actor's thread ---------------------------------------------------------------


class Slow(set[Any]):
    """A set that takes its time when it is gone through."""

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            time.sleep(0.0005)
            yield item


def trial(rng: random.Random) -> list[str]:
    """Some calls, an engine that breaks; how each call ended. Real threads."""
    breaks = rng.randrange(1, 12)

    def wrong(step: int, _: Any) -> bool:
        if step >= breaks:
            raise KeyboardInterrupt  # nothing that the stream survives
        return False

    thread = EngineThread(lambda: CountingEngine(wrong, batch=4, length=lambda row: 1 + row % 3))
    thread.calls = Slow(thread.calls)
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def call(rows: int) -> None:
        try:
            found = thread.answers(list(range(rows)), list(range(rows)), set())
            ended.put("answered" if None not in found else "lost")
        except BaseException as error:
            ended.put(type(error).__name__)

    calls = [threading.Thread(target=call, args=(rng.randrange(8),)) for _ in range(actor.CALLS)]
    for one in calls:
        one.start()
    for one in calls:
        one.join(60)
        assert not one.is_alive(), "a call waits for ever"
    return [ended.get() for _ in calls]


def test_calls_end_when_the_engine_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 engines that break at another moment each, with calls coming and going."""
    monkeypatch.undo()  # pictures are loaded by threads here
    rng = random.Random(0)
    ends = [end for _ in range(500) for end in trial(rng)]
    assert set(ends) == {"answered", "KeyboardInterrupt"}
    assert min(ends.count(end) for end in set(ends)) > 100


def test_a_closed_thread_takes_no_calls() -> None:
    thread = EngineThread(CountingEngine)
    assert len(thread.answers([1, 2], [1, 2], set())) == 2
    thread.close()
    with pytest.raises(RuntimeError, match="closed"):
        thread.answers([3], [3], set())
