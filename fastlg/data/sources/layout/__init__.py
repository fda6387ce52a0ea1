"""How people lay images out: names of splits, walks below folders, listings, labels."""
