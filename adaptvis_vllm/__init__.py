"""AdaptVis attention steering as a vLLM plugin."""

from adaptvis_vllm.steering.params import AdaptVis, Candidates, Off, ScalingVis, SteeringParams

__all__ = ["AdaptVis", "Candidates", "Off", "ScalingVis", "SteeringParams"]
