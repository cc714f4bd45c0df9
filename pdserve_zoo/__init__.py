"""Models whose public weights come in another framework's format, rebuilt here as Paddle inference models."""
