"""pdserve: fetch, convert and serve PaddlePaddle vision models with one command."""

__version__ = "0.1.0"
