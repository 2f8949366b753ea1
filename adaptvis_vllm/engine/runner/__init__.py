"""Adapters for the two vLLM model runners, and the check of side rows at start-up.

Nothing else of the engine imports them: `plugin` names them.
"""
