"""MANY requests over time, on the host: request, batcher (no jax), engine (the device loop)."""
