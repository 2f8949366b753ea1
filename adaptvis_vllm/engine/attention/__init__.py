"""Recomputation of steered attention rows behind a vLLM attention backend.

Imports `engine.steps`, what is below it, and the kernels; never a runner.
"""
