"""What a run is: config, network, state, checkpoints, devices. Training writes it, prediction reads it."""
