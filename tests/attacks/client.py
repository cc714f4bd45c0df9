"""Servers and files that attack whoever asks: predict, fetch, the Python clients."""
