"""Where image positions lie: which picture, which frame, which rectangle of it.

Imports no other room, and torch and vLLM only inside functions.
"""
