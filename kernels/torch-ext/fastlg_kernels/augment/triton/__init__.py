"""The kernels of augmentation; imported only where Triton runs."""
