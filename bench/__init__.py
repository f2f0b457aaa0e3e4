"""Benchmarks: run by hand, with figures kept in bench/RESULTS.md. The test command never runs them."""
