"""The networks: 2D and 3D ResNet-RS, their presets and their weights."""
