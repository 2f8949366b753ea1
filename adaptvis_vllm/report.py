"""What was done to one request. Import-light: no torch, no vLLM."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

NO_IMAGE = "no image"
NO_VIDEO = "no video"  # of a request that steers towards videos only
MODE_OFF = "mode off"
CARRIER = "adaptvis"  # its key in vLLM's kv_transfer_params, and in responses


def nothing_to_steer(span: str) -> str:
    """The reason where a prompt has no position of this span."""
    return NO_VIDEO if span == "video" else NO_IMAGE


@dataclass(frozen=True)
class Report:
    """Goes out with every answer.

    mode: the request's mode, "off" when it asked for nothing.
    confidence: in [0, 1], of the unsteered first token; None outside adaptive steering.
    alpha: the one applied; None when not steered.
    steered: whether a row was scaled. With alpha 1 it is, to no effect.
    reason: why not steered, one of this module's constants; None when steered.
    """

    mode: str
    confidence: float | None = None
    alpha: float | None = None
    steered: bool = False
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
