"""The table of commands, and the larger commands, a module each."""
