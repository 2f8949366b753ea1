"""The job on Ray Data: pieces of the input become blocks, blocks go to a pool of engines."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockMetadata

from adaptvis_vllm.batch.actor import CALLS, JobActor
from adaptvis_vllm.batch.inputs import PIECE_BYTES, Piece, merged
from adaptvis_vllm.batch.job import Job, Settings
from adaptvis_vllm.batch.parts import MISSING
from adaptvis_vllm.cluster import session

OBJECT_STORE = 2**30
CALL_ROWS = (16, 256)
BLOCK = pa.schema([("key", pa.int64()), ("row", pa.binary())])


@contextmanager
def connected(settings: Settings) -> Iterator[None]:
    """A Ray of our own on this machine, or the cluster at `ray_address`."""
    if ray.is_initialized():
        yield
        return
    # Two more than the engines need: without them readers starve, and the job hangs.
    cpus = int(settings.workers * _cpus(settings) + 2.999)
    with session.connected(settings.ray_address, cpus, OBJECT_STORE, log_to_driver=False):
        yield


def _cpus(settings: Settings) -> float:
    if settings.cpus is not None:
        return settings.cpus
    if settings.ray_address is not None:
        return 1
    return max(1, (os.cpu_count() or 1) // max(1, settings.workers))


def pool(settings: Settings) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of engines."""
    cpus = _cpus(settings)
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    ranks = settings.engine.get("tensor_parallel_size", 1)
    gpus = settings.gpus if settings.gpus is not None else ranks if has_gpus else 0
    env = session.worker_env() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if not gpus:
        # Engines that share a machine would all be bound to its first core.
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        env["OMP_NUM_THREADS"] = str(max(1, int(cpus)))
    strategy = ActorPoolStrategy(
        size=settings.workers,
        max_tasks_in_flight_per_actor=CALLS + 2,
        max_concurrent_calls_per_actor=CALLS,
        enable_true_multi_threading=True,
    )
    return {
        "compute": strategy,
        "num_cpus": cpus,
        "num_gpus": gpus,
        "runtime_env": {"env_vars": env},
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
    }


def answer_pieces(job: Job) -> None:
    """Run the job's unfinished rows; answers go to its part files."""
    quiet()
    suspects = job.parts.suspects()
    todo = job.parts.status == MISSING
    # Rows a call: many, so that the engine's batch stays full; few, so that the last ones
    # are shared by all workers.
    rows = min(max(int(todo.sum()) // (8 * job.settings.workers), CALL_ROWS[0]), CALL_ROWS[1])
    source = PieceSource(merged(job.source.pieces, rows), todo)
    arguments = (
        job.settings.maker(job.source),
        str(job.folder.resolve()),
        job.source.total,
        job.attempt,
        suspects,
    )
    dataset = ray.data.read_datasource(source, override_num_blocks=max(1, len(source.pieces)))
    done = dataset.map_batches(
        JobActor, fn_constructor_args=arguments, batch_size=rows, **pool(job.settings)
    )
    try:
        for _ in done.iter_batches(batch_size=None, prefetch_batches=0):
            pass
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        reason = f"{type(cause).__name__}: {cause}" if cause else str(error)
        raise RuntimeError(f"the job stopped, --resume goes on with it: {reason}") from error


def quiet() -> None:
    """Ray Data's own bars and log lines would break ours."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = PIECE_BYTES
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class PieceSource(Datasource):
    """Blocks of (row number, pickled undecoded row). todo: by row number."""

    def __init__(self, pieces: list[Piece], todo: Any) -> None:
        super().__init__()
        self.pieces = [
            (piece, chosen.tobytes())
            for piece in pieces
            if (chosen := todo[piece.first : piece.first + piece.count]).any()
        ]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, *_: Any, **__: Any
    ) -> list[ReadTask]:
        return [_task(piece, chosen) for piece, chosen in self.pieces]


def _task(piece: Piece, chosen: bytes) -> ReadTask:
    metadata = BlockMetadata(
        num_rows=sum(chosen), size_bytes=None, input_files=None, exec_stats=None
    )
    return ReadTask(lambda: blocks(piece, chosen), metadata, BLOCK)


def blocks(piece: Piece, chosen: bytes) -> Iterable[pa.Table]:
    """The piece's chosen rows, in blocks of bounded size."""
    keys: list[int] = []
    rows: list[bytes] = []
    size = 0
    for key, raw in piece.read():
        if not chosen[key - piece.first]:
            continue
        keys.append(key)
        rows.append(pickle.dumps(raw))
        size += len(rows[-1])
        if len(keys) == CALL_ROWS[1] or size >= PIECE_BYTES:
            yield pa.table([keys, rows], schema=BLOCK)
            keys, rows, size = [], [], 0
    if keys:
        yield pa.table([keys, rows], schema=BLOCK)
