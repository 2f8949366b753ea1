"""`adaptvis diagnose`: where a model looks, by layer and head, and whether that tells its answers.

Imports `evaluation`, `maps`, `steering` and `files`; `engine` only through them and `options`.
"""
