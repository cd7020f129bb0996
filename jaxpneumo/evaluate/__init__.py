"""Scores at native size."""
