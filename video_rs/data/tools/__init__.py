"""Prepare, index and check datasets, and generate the motion dataset."""
