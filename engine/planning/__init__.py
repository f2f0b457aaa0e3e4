"""WHERE it is computed, decided before a chip is touched: models and chips, bytes moved, bytes held.

Arithmetic alone: no device, and no array.
"""
