"""ONE program on the device: prefill, decode, score, and the sampling inside decode. Pure: state in, state out."""
