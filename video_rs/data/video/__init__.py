"""Read the frames of videos and images."""
