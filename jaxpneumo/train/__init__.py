"""Training: losses, optimizer, input, compiled steps, the loop over epochs, and the stages of a run."""
