"""What a request may ask for, and what it is told.

Imports `files` alone; never vLLM, and torch in `policy` only.
"""
