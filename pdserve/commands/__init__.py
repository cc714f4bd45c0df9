"""The larger commands, a module each; pdserve.cli puts them together."""
