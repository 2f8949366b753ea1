"""Steered attention kernels over a paged KV cache: Triton, and the torch reference."""
