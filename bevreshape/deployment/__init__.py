"""A trained model at work: predictions, exported programs, and what these take."""
