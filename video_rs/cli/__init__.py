"""One module per command; ``tools/*.py`` and the console script ``video-rs`` are thin wrappers on them."""
