"""Features of the frozen teacher, computed once and read at every step."""
