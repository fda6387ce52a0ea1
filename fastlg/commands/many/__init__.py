"""Many runs and one table: what ``reproduce``, ``sweep`` and ``compare --seeds`` share."""
