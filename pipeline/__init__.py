"""Rows in, rows out: sources, prompts, the work plan, the Beam graph and the commit of finished shards."""
