"""The compiled rows of CPUs."""
