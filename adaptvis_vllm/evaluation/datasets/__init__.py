"""Questions and how their answers are scored: published benchmarks, and own data.

Imports `offline`, `steering` and `files`; nothing of the evaluation around it, and no engine.
"""
