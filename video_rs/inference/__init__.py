"""Use a trained network."""
