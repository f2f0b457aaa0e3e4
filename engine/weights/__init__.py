"""HOW numbers reach the device: safetensors files, matched with the parameters they fill and read piece by piece."""
