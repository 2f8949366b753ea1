"""Answer rows with an `LLM` that is there, its batch kept full, in input order.

Unlike `stream`, which loads pictures in threads and replaces an engine that fails: here rows enter
at the same steps in every run, so that an evaluation computes the same batches each time, and an
`LLM` whose engine is another process will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from adaptvis_vllm.maps.folder import MapFolder
from adaptvis_vllm.offline.format import RowFormat, given_up
from adaptvis_vllm.offline.schema import output_row, row_id_of, sentence


class RowRunner:
    """Feeds rows to an `LLM` as it has room and yields output rows in input order.

    llm, folder, logprobs, maps: as of `RowFormat`. Memory is bounded by a window of twice the
    engine's `max_num_seqs`, whatever the input's length.
    """

    def __init__(
        self,
        llm: Any,
        folder: Path,
        logprobs: int | None = None,
        maps: MapFolder | bool | None = None,
    ) -> None:
        self.llm = llm
        self.format = RowFormat(llm, folder, logprobs, maps=maps)
        self.window = 2 * llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def run(self, values: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """values: decoded lines (`lines.read_lines`). A bad row becomes an error row."""
        for row_id, result in self.outputs(values):
            if isinstance(result, str):
                yield output_row(row_id, error=result)
            else:
                yield self.format.row(row_id, result)

    def outputs(
        self, values: Iterable[Any], keep: Callable[[int, Any], Any] | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """The same as (row id, finished vLLM `RequestOutput`, or why there is none).

        keep: given a row's number and its output as soon as it is finished, returns what is yielded
        in the output's place; only that is held while earlier rows run.
        """
        source = iter(values)
        done: dict[int, tuple[Any, Any]] = {}
        running: dict[str, tuple[int, Any]] = {}
        taken = written = 0
        more = True
        while more or running or done:
            while more and taken - written < self.window:
                value = next(source, self)
                if value is self:
                    more = False
                    break
                row_id = row_id_of(value)
                try:
                    running[self.format.enqueue(self.format.prepare(value))] = (taken, row_id)
                except Exception as error:  # nothing is queued yet: the row alone is at fault
                    done[taken] = row_id, sentence(error)
                taken += 1
            if running:
                for output in self.llm.llm_engine.step():
                    if output.finished:
                        number, row_id = running.pop(output.request_id)
                        kept = given_up(output) or (
                            output if keep is None else keep(number, output)
                        )
                        done[number] = row_id, kept
            while written in done:
                yield done.pop(written)
                written += 1
