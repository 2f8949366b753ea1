"""AdaptVis attention steering as a vLLM plugin."""
