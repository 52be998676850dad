"""One module per command. ``tools/*.py`` and the console script ``video-rs`` call them."""
