"""Benchmarks of the field, in their published layouts, at every number of steps."""
