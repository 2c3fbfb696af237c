"""Deploy a trained model: predictions, exported programs, and their inputs."""
