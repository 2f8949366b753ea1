"""Finished rows on disk: one append-only file per process, safe against its death.

A line is "CRC KEY FLAG TOKENS BRANCH JSON". KEY is the row's number in the input. FLAG:
"+" answered, "!" error row, "s" entered an engine, "S" entered it alone (no JSON). A line
that is cut off or damaged does not count, so its row runs again. A row that is there twice
counts once.
"""

from __future__ import annotations

import os
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adaptvis_vllm.files.lines import dumps
from adaptvis_vllm.offline.stream import DEATHS, Answer

SUFFIX = ".part"
SYNC_SECONDS = 2.0
MISSING, ERROR, DONE = 0, 1, 2


class PartWriter:
    """This process's file in `folder`. attempt: of the job; later ones overrule error rows."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.path = folder / f"{attempt:06d}-{uuid.uuid4().hex}{SUFFIX}"
        self.file = self.path.open("ab", buffering=0)
        self.synced = time.monotonic()

    def write(self, answers: Iterable[tuple[int, Answer]]) -> None:
        self._append(
            b"%d %s %d %s %s"
            % (
                key,
                b"+" if answer.error is None else b"!",
                answer.tokens,
                answer.branch.encode() or b"-",
                dumps(answer.row),
            )
            for key, answer in answers
        )

    def started(self, keys: Iterable[int], alone: bool) -> None:
        self._append(b"%d %s 0 - " % (key, b"S" if alone else b"s") for key in keys)

    def _append(self, lines: Iterable[bytes]) -> None:
        block = memoryview(b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines))
        while block:
            block = block[self.file.write(block) :]
        if time.monotonic() - self.synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        os.fsync(self.file.fileno())
        self.synced = time.monotonic()

    def close(self) -> None:
        self.sync()
        self.file.close()


class Parts:
    """All files of a folder, read as they grow. total: how many rows the job has.

    Memory: 17 bytes a row.
    """

    def __init__(self, folder: Path, total: int, attempt: int | None = None) -> None:
        self.folder = folder
        self.only = "" if attempt is None else f"{attempt:06d}-"
        self.status = np.zeros(total, np.uint8)
        self.where = np.zeros(total, np.int64)  # offset of the row's JSON
        self.length = np.zeros(total, np.int32)
        self.file = np.zeros(total, np.int32)
        self.names: list[str] = []
        self.offsets: list[int] = []
        self.deaths: dict[str, dict[int, bool]] = {}  # file -> rows in flight -> alone
        self.tokens = 0
        self.branches: Counter[str] = Counter()
        self.damaged = 0

    @property
    def done(self) -> int:
        return int(np.count_nonzero(self.status))

    @property
    def errors(self) -> int:
        return int(np.count_nonzero(self.status == ERROR))

    def poll(self) -> None:
        """Take in what was written since the last call."""
        known = set(self.names)
        names = (p.name for p in self.folder.glob(f"{self.only}*{SUFFIX}"))
        for name in sorted(n for n in names if n not in known):
            self.names.append(name)
            self.offsets.append(0)
        for number, name in enumerate(self.names):
            try:
                grown = (self.folder / name).stat().st_size > self.offsets[number]
            except FileNotFoundError:
                continue
            if grown:
                self._read(number)

    def _read(self, number: int) -> None:
        with (self.folder / self.names[number]).open("rb") as lines:
            lines.seek(self.offsets[number])
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # not yet written to its end, or never will be
                self._line(number, self.offsets[number], line)
                self.offsets[number] += len(line)

    def _line(self, number: int, offset: int, line: bytes) -> None:
        fields = line.split(b" ", 5)
        try:
            intact = int(fields[0], 16) == zlib.crc32(line[9:-1]) and len(fields) == 6
        except ValueError:
            intact = False
        if not intact:
            self.damaged += 1
            return
        key, flag, branch = int(fields[1]), fields[2], fields[4].decode()
        flying = self.deaths.setdefault(self.names[number], {})
        if flag in (b"s", b"S"):
            flying[key] = flag == b"S"
            return
        flying.pop(key, None)
        status = DONE if flag == b"+" else ERROR
        if self.status[key] == DONE or (
            self.status[key] == ERROR
            and status == ERROR
            and self._attempt(number) < self._attempt(self.file[key])
        ):
            return
        self.status[key] = status
        self.file[key] = number
        self.length[key] = len(fields[5]) - 1
        self.where[key] = offset + len(line) - len(fields[5])
        self.tokens += int(fields[3])
        if branch != "-":
            self.branches[branch] += 1

    def _attempt(self, number: int) -> str:
        return self.names[number].partition("-")[0]

    def suspects(self) -> dict[int, int]:
        """Unfinished rows that were in flight when processes died -> deaths while alone.

        Only rows with `DEATHS` deaths. Files of living processes count too: harmless.
        """
        died: Counter[int] = Counter()
        alone: Counter[int] = Counter()
        for flying in self.deaths.values():
            died.update(flying.keys())
            alone.update(key for key, lonely in flying.items() if lonely)
        return {
            key: alone[key]
            for key, count in died.items()
            if count >= DEATHS and self.status[key] == MISSING
        }

    def forget_errors(self, attempt: int) -> None:
        """Error rows of earlier attempts than this one are to run again, the deaths until then
        forgiven."""
        old = np.array([int(self._attempt(n)) < attempt for n in range(len(self.names))], bool)
        again = np.zeros(len(self.status), bool)
        if old.any():
            again = (self.status == ERROR) & old[self.file]
        for name, flying in self.deaths.items():
            if int(name.partition("-")[0]) < attempt:
                for key in [key for key in flying if again[key]]:
                    del flying[key]
        self.status[again] = MISSING

    def row(self, key: int) -> bytes:
        """The JSON of one finished row."""
        with (self.folder / self.names[self.file[key]]).open("rb") as file:
            return os.pread(file.fileno(), int(self.length[key]), int(self.where[key]))

    def rows(self) -> Iterator[bytes]:
        """The JSON of every finished row, in input order."""
        files: dict[int, Any] = {}
        try:
            for key in np.flatnonzero(self.status).tolist():
                number = int(self.file[key])
                if number not in files:
                    if len(files) >= 256:
                        files.pop(next(iter(files))).close()
                    files[number] = (self.folder / self.names[number]).open("rb")
                yield os.pread(files[number].fileno(), int(self.length[key]), int(self.where[key]))
        finally:
            for file in files.values():
                file.close()
