"""Weights: read them from files and packages, initialize networks, inflate 2D to 3D, export to timm.

A network that was initialized from weights records their origin as ``model.weights_from``, and checkpoints keep the
record: ``{"source": "timm/resnet50.a1_in1k", "licence": "apache-2.0"}``. The source is the name of another package's
weights, a path, or a URL without its secrets. The licence is None if it is unknown. If the source is a checkpoint with
such a record, that record is nested as ``weights_from``, and the licence is taken from it. The record is None for a
network that was trained from random weights.
"""
