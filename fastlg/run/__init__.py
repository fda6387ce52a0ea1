"""One run on disk: folder, lock, position, record, checkpoints, evaluation."""
