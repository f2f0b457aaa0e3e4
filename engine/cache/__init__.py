"""What is REMEMBERED: keys and values in pages on the device, and who holds which page on the host."""
