"""Tiny random checkpoints and pictures for the tests; nothing is downloaded."""

from adaptvis_vllm._torchvision import ensure

ensure()
