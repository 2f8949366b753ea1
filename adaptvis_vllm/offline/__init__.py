"""Rows of a file, answered by an engine in this process."""
