"""AdaptVis attention steering as a vLLM plugin."""

from adaptvis_vllm.steering.params import AdaptVis, Off, ScalingVis, SteeringParams

__all__ = ["AdaptVis", "Off", "ScalingVis", "SteeringParams"]
