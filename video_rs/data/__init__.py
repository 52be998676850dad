"""From files to batches: records -> clips -> decode -> transforms -> dataset -> loader."""
