"""What leaves the project: networks for other runtimes, and folders to share."""
