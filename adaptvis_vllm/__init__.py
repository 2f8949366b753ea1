"""AdaptVis attention steering as a vLLM plugin.

Imports `steering.params` alone: it is loaded in every vLLM process. The rooms and what each may
import are in pyproject.toml, checked by import-linter (`make lint`).
"""

from adaptvis_vllm.steering.params import AdaptVis, Candidates, Off, ScalingVis, SteeringParams

__all__ = ["AdaptVis", "Candidates", "Off", "ScalingVis", "SteeringParams"]
