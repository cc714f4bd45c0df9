"""Other servers that would be taken for the same work, each set up as its own documents advise.

A file is one server; ``requirements-NAME.txt`` is what it needs beside pdserve, whose engine, preprocessing
and results they all use (task.py): what differs is the server alone.
"""
