"""What every kernel of augmentation computes, in plain torch: their truth, and the path without a GPU."""
