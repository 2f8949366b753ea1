"""What was done to one request. Import-light: no torch, no vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adaptvis_vllm.steering.params import SteeringParams

NO_IMAGE = "no image"
NO_VIDEO = "no video"  # of a request that steers towards videos only
MODE_OFF = "mode off"
MODE_CANDIDATES = "mode candidates"
CARRIER = "adaptvis"  # its key in vLLM's kv_transfer_params, and in responses


def nothing_to_steer(kind: str) -> str:
    """The reason where a prompt has no position of this `SteeringParams.kind`."""
    return NO_VIDEO if kind == "video" else NO_IMAGE


@dataclass(frozen=True)
class Report:
    """Goes out with every answer.

    mode: the request's mode, "off" when it asked for nothing.
    confidence: in [0, 1], of the unsteered first token; None outside adaptive steering and
        candidates.
    alpha: the one applied; None when not steered.
    steered: whether a row was scaled. With alpha 1 it is, to no effect.
    reason: why not steered, one of this module's constants; None when steered.
    option: the most probable one of the request's options; None without any.

    Of mode "candidates" alone, and None in others:
    candidates: for each alpha `candidate`'s fields; empty where there is no image.
    confidences: measure -> confidence, of the unsteered first token.
    """

    mode: str
    confidence: float | None = None
    alpha: float | None = None
    steered: bool = False
    reason: str | None = None
    candidates: Sequence[Mapping[str, Any]] | None = None
    confidences: Mapping[str, float] | None = None
    option: str | None = None

    def branch(self, steering: SteeringParams) -> str:
        """Which alpha: "low" or "high", "given" by the request, or "none".

        steering: the request's, complete. Where both alphas are the same the confidence tells, by
        the comparison that `policy.choose_alpha` makes.
        """
        if not self.steered:
            return "none"
        if self.confidence is None or steering.threshold is None:
            return "given"
        if steering.alpha_low != steering.alpha_high:
            return "low" if self.alpha == steering.alpha_low else "high"
        import numpy as np  # here: the module is imported where nothing else needs it

        places = steering.confidence_decimals
        compared = self.confidence if places is None else round(self.confidence, places)
        return "low" if np.float32(compared) < np.float32(steering.threshold) else "high"

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Fields of mode "candidates" are in no other mode's, nor is option without
        one."""
        out = asdict(self)
        if self.mode != "candidates":
            del out["candidates"], out["confidences"]
        if self.option is None:
            del out["option"]
        return out


def candidate(
    alpha: float, token_id: int, token: str | None, probability: float, stop: bool
) -> dict[str, Any]:
    """The best first token under one alpha: of the raw logits, before temperature, penalties,
    biases, bad words and grammar.

    token: what an answer of it alone reads, "" for an end of sequence; None without a tokenizer.
    probability: over the vocabulary. stop: whether an answer ends with it.
    """
    return {
        "alpha": alpha,
        "token_id": token_id,
        "token": token,
        "probability": probability,
        "stop": stop,
    }


def adaptive_branch(report: Mapping[str, Any] | None, steering: SteeringParams | None) -> str:
    """ "low" or "high" for a `Report` as a dict, or "" where the confidence chose nothing."""
    found = "none" if report is None or steering is None else Report(**report).branch(steering)
    return found if found in ("low", "high") else ""
