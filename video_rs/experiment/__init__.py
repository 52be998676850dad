"""Build models, datasets, trainers and runs from a config. Only this package and ``cli`` use configs."""
