"""Weights: read, rename, inflate, start from."""
