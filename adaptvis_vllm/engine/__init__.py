"""Steering inside vLLM's engine."""
