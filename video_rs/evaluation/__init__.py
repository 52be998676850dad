"""Evaluation: scores over many views of each video, metrics, and a report a person can read."""
