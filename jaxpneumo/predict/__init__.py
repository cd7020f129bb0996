"""Prediction: from probabilities to masks and output files."""
