"""Files to verified arrays to batches."""
