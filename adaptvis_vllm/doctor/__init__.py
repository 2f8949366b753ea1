"""`adaptvis doctor`: what works here, and what steering does to a model.

Imports `plugin`, `engine` and what is below them; nothing of `verify`.
"""
