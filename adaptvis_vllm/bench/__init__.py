"""`adaptvis bench`: steering against what one would run without it, in turn, in one run.

Imports what it measures; nothing of `doctor` or `verify`.
"""
