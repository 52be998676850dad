"""Weights: read them from files and packages, start a network from them, inflate images to clips, export to timm.

A network that starts from weights records where they came from as ``model.weights_from``, and checkpoints keep the
record: ``{"source": "timm/resnet50.a1_in1k", "licence": "apache-2.0"}``. The source is a name of another package's
weights, a path or an address without its secrets. The licence is None if it is unknown. If the source is a
checkpoint that started from weights itself, its own record is inside as ``weights_from``, and the licence is the one
of those weights. The record of a network that was trained from random weights is None.
"""
