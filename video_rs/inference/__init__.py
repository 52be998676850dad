"""Use a trained network: classify and embed videos and images."""
