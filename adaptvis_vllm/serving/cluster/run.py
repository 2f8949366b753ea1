"""Deploys the application, says when it is ready, and ends it on Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import math
import signal
import socket
import tempfile
import threading
import time
from typing import Any, NoReturn

from ray import serve

from adaptvis_vllm.cluster.session import connected
from adaptvis_vllm.serving.cluster.deployment import NAME, application, cpus_here, uses_ray
from adaptvis_vllm.serving.cluster.routing import CALLBACK
from adaptvis_vllm.serving.options import TLS, check

STOP_S = 30.0  # an idle replica's
OBJECT_STORE = 2**28  # bytes; requests and answers do not go through it
# Of Serve's controller: a proxy on a busy machine needs longer to start than the 5 s of Ray.
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "50"}


def run(args: argparse.Namespace, replicas: int, ray_address: str | None) -> int:
    """`cluster.serve`."""
    check(args, replicas)
    own = ray_address is None
    host = args.host or "0.0.0.0"
    most = args.max_replicas or replicas
    cpus = cpus_here(most) if own else 1.0
    if own:
        free(host, args.port)
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size if uses_ray(args) else 0
    total = math.ceil(most * ((args.cpus_per_replica or cpus) + ranks))
    try:
        with (
            tempfile.TemporaryDirectory(prefix="adaptvis-metrics-") as metrics,
            connected(ray_address, total, OBJECT_STORE, env=CALLBACK | PATIENT),
        ):
            # Ray has a handler of its own, which would leave Serve's actors behind.
            signal.signal(signal.SIGTERM, interrupt)
            try:
                serve.start(
                    proxy_location="HeadOnly" if own else "EveryNode",
                    http_options={"host": host, "port": args.port, **tls(args)},
                )
                serve.run(application(args, replicas, cpus, metrics), name=NAME, route_prefix="/")
                print(f"ready: {replicas} replicas at {host}:{args.port}", flush=True)
                threading.Event().wait()
            finally:
                end(args.drain_timeout)
                if own:  # others may have applications in the cluster's Serve
                    serve.shutdown()
    except KeyboardInterrupt:
        return 0
    return 0


def end(drain: float) -> None:
    """Delete the application; the proxies live on until its replicas have answered."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve.delete(NAME, _blocking=False)
    deadline = time.monotonic() + drain + STOP_S
    while NAME in serve.status().applications and time.monotonic() < deadline:
        time.sleep(0.2)


def interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def free(host: str, port: int) -> None:
    """OSError if the port is taken: Serve's proxy would try for ever."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(f"--host {host} --port {port}: {error.strerror}") from error


def tls(args: argparse.Namespace) -> dict[str, Any]:
    """vLLM's TLS options in Serve's words."""
    return {name: getattr(args, name) for name in TLS if getattr(args, name) is not None}
