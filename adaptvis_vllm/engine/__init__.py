"""Steering inside vLLM's engine: admission, scheduling, the worker's steps, the report.

Imports `steering`, `files` and the kernels; nothing of commands, rows of files, batches or
servers.
"""
