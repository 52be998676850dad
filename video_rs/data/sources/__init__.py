"""Where samples come from: folders, lists, official layouts, shards."""
