"""Each parser against files and requests that nobody meant: Hypothesis alters good samples, and a parser
either reads the result or says no with an error of its documented kind, within bounds of memory and time.

Two profiles: ``ci``, the usual one, takes the same few examples each time; ``deep`` goes on for minutes,
takes other examples each time and keeps those that fail::

    PDSERVE_FUZZ=deep pytest tests/fuzz
    PDSERVE_FUZZ=deep PDSERVE_FUZZ_EXAMPLES=100000 pytest tests/fuzz/test_archives.py

Requests of every protocol have a command beside, with ten minutes for each parser::

    python -m tests.fuzz.requests

A finding becomes a test of its own beside the parser's others, with the few bytes that matter.
"""
