"""Metrics and the features they compare."""
