"""Adapters for the two vLLM model runners."""
