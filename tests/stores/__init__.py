"""Doubles of two object stores, spoken to by the real gcsfs and s3fs over real HTTP, with faults on demand.

objects  what both hold: buckets of whole objects on disk, conditional puts, generations; it survives a kill
faults   what goes wrong, drawn by a seed or asked for
gcs      Google's JSON API
s3       Amazon's REST API
serving  a server in a thread, or in a process of its own that can be killed
"""
