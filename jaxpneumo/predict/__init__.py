"""Probabilities to masks to files."""
