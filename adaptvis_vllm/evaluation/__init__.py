"""Benchmarks, scoring and calibration: how well a model answers, with and without steering."""
