"""Ways around API keys, and ways to guess them."""
