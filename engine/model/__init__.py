"""WHAT is computed: configuration, parameters, and the decoder as the paper writes it."""
