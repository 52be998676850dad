"""Sources of samples: class folders, lists, known dataset layouts, shards."""
