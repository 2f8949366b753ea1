"""Recomputation of steered attention rows behind a vLLM attention backend."""
