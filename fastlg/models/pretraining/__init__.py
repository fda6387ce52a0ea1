"""Training without labels: a student that is taught by its own running mean, as a start for another run."""
