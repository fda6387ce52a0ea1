"""Images decoded once, memory-mapped ever after."""
