"""Losses, optimizer, state, step, loop, checkpoints."""
