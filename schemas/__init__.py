"""What is written to disk: the columns of the result tables, and the documents of the manifest."""
