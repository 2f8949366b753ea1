"""The kernels compiled for GPUs that are not there."""
