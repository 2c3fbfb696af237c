"""Metrics of bird's-eye-view predictions."""
