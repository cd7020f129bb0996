"""What every command needs: options, errors, files, signals, workers. Knows nothing of radiographs."""
