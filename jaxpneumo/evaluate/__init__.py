"""Evaluation: scores at native size."""
