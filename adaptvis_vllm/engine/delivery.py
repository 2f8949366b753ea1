"""Reports and maps on their way out of the engine: with a request's last output, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptvis_vllm.engine import mapping, metrics
from adaptvis_vllm.engine.texts import with_texts
from adaptvis_vllm.steering.report import CARRIER


def output_report(self: Any) -> dict[str, Any] | None:
    """`RequestOutput.adaptvis`: the report of a finished output, else None."""
    return (self.kv_transfer_params or {}).get(CARRIER)


def deliver_report(
    original: Callable[..., Any],
    self: Any,
    new_token_ids: Any,
    pooling_output: Any,
    finish_reason: Any,
    stop_reason: Any,
    kv_transfer_params: dict[str, Any] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `RequestState.make_request_output`.

    The report comes with the first token, maps come in pieces, and all leave with the last output,
    counted.
    """
    rest = dict(kv_transfer_params or {})
    if CARRIER in rest:
        self.adaptvis = rest.pop(CARRIER)
    maps = getattr(self, "adaptvis_maps", None)
    pieces = rest.pop(mapping.CARRIER, ())
    if maps is not None:
        maps.pieces.extend(pieces)
    kv_transfer_params = rest or None
    arrived = getattr(self, "adaptvis", None)
    if arrived is not None and finish_reason is not None:
        report = {k: v for k, v in arrived.items() if k != "branch"}
        if report.get("candidates"):
            report["candidates"] = with_texts(self, report["candidates"])
        metrics.count_finished(report, arrived["branch"])
        kv_transfer_params = {**(kv_transfer_params or {}), CARRIER: report}
    output = original(
        self,
        new_token_ids,
        pooling_output,
        finish_reason,
        stop_reason,
        kv_transfer_params,
        *args,
        **kwargs,
    )
    if maps is not None and finish_reason is not None and output is not None:
        output.adaptvis_maps = maps.maps()
    return output


def keep_report(
    original: Callable[..., Any], self: Any, next_output: Any, *args: Any, **kwargs: Any
) -> None:
    """Wraps `RequestOutput.add`, which merges outputs and takes the later one's parameters.

    With n > 1 a choice may end, and report, before another one goes on.
    """
    report = output_report(self)
    original(self, next_output, *args, **kwargs)
    if report is not None and output_report(self) is None:
        self.kv_transfer_params = {**(self.kv_transfer_params or {}), CARRIER: report}
    if next_output.adaptvis_maps is not None:
        self.adaptvis_maps = next_output.adaptvis_maps
