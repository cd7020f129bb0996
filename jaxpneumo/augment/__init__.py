"""Augmentation groups A1..A4 and their engines."""
