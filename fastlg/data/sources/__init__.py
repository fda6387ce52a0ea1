"""Labelled images as they are found: folders, arrays, parquet, archives; nothing is decoded yet."""
