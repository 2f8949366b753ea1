"""Rows of a file, answered by an engine in this process; the command `adaptvis generate`.

Imports `options`, `engine`, `steering` and `files`; nothing of batches, servers or evaluation.
"""
