"""The kernels compiled for GPUs that are not there, and the least that they must move.

Imports `gpu`; nobody who answers requests imports it.
"""
