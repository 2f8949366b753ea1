"""Questions: benchmarks and own data."""
