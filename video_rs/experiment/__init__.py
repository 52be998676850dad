"""From a config to a model, data, a trainer and a run. The only room besides ``cli`` that sees a config."""
