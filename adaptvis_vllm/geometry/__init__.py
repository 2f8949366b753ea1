"""Where image positions lie: which picture, which frame, which rectangle of it.

Imports no other room, no torch and no vLLM.
"""
