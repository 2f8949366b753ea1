"""Steering over HTTP; the command `adaptvis serve`.

Imports `options`, `engine` and `steering`; nothing of rows of files, batches or evaluation.
"""
