"""Benchmarks, scoring and calibration: how well a model answers, with and without steering.

Imports `offline` and what is below it; nothing of batches, servers or benches.
"""
