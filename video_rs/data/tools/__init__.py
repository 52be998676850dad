"""Prepare and check datasets."""
