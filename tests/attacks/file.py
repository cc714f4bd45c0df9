"""Files that a server or a command reads: models, indexes, settings, galleries."""
