"""From frames to clips of one size: crops, augmentation, mixing."""
