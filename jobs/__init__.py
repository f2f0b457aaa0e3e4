"""What to run and when: job files, the `penstock` command, runners and reports."""
