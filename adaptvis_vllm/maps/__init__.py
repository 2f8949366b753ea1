"""Attention maps of one request: what they hold, their files, and pictures of them.

Imports nothing of the package, no torch and no vLLM.
"""

from adaptvis_vllm.maps.maps import Maps

__all__ = ["Maps"]
