"""WHICH programs exist: length and batch buckets, compiled ahead. And the look at a checkpoint before any of it."""
