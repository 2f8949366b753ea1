"""What is compared: which process serves it, and how its requests are steered."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adaptvis_vllm.steering.params import AdaptVis, ScalingVis, SteeringParams

SCALING = ScalingVis(0.8)
ADAPTIVE = AdaptVis(0.5, 1.5, 0.4)
GENERATED = replace(SCALING, rows="generated")
# Processes: vLLM without the plugin, vLLM with it, plain transformers.
VANILLA, PLUGIN, REFERENCE = "vanilla", "plugin", "reference"


@dataclass(frozen=True)
class System:
    """host: the process that serves it. steering: of the share of requests that have one.
    twice: the answer is asked for twice by the client, the second time with alpha."""

    name: str
    host: str
    steering: SteeringParams | None = None
    share: float = 1.0
    twice: bool = False

    def steers(self, number: int) -> SteeringParams | None:
        """The steering of request `number` of a turn; a share is spread evenly."""
        chosen = int((number + 1) * self.share + 1e-9) > int(number * self.share + 1e-9)
        return self.steering if chosen else None


_ALL = (
    System("vanilla", VANILLA),
    System("idle", PLUGIN),
    System("scaling", PLUGIN, SCALING),
    System("adaptive", PLUGIN, ADAPTIVE),
    System("adaptive-maps", PLUGIN, replace(ADAPTIVE, maps="all")),
    System("two-request", PLUGIN, ADAPTIVE, twice=True),
    System("reference", REFERENCE, ADAPTIVE, twice=True),
)
NAMES = tuple(s.name for s in _ALL)


def system(name: str) -> System:
    """By name; "mix-P" steers P percent of the requests adaptively, "generated-P" P percent and
    their generated tokens' rows. ValueError for others."""
    for known in _ALL:
        if known.name == name:
            return known
    kind, _, percent = name.partition("-")
    shared = {"mix": ADAPTIVE, "generated": GENERATED}
    if kind in shared and percent.isdigit() and 0 <= int(percent) <= 100:
        return System(name, PLUGIN, shared[kind], share=int(percent) / 100)
    raise ValueError(
        f"no system {name!r}; known are {', '.join(NAMES)}, mix-0 to mix-100 and generated-0 to "
        "generated-100"
    )


def alpha_of(steering: SteeringParams, confidence: float) -> float:
    """What a client that steers in two requests decides."""
    assert steering.threshold is not None
    alpha = steering.alpha_low if confidence < steering.threshold else steering.alpha_high
    assert alpha is not None
    return alpha
