"""The compiled rows of CPUs.

Imports nothing of the package.
"""
