"""Other runtimes for the same settings. The rest of pdserve reaches them by commands/runtimes.RUNTIMES."""
