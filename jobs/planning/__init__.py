"""`penstock plan`, `profile` and `compile`: questions about time, memory and cost, and how the answers are shown."""
