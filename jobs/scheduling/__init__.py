"""Scheduled scoring: a job run once for every partition of an input that grows with time."""
