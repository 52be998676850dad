"""Evaluation: multi-view scores, metrics, and a report of a test."""
