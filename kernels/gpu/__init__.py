"""The Triton kernels and how they are launched.

Imports nothing of the package but its own modules.
"""
