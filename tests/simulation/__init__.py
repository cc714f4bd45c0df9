"""Batcher, reload, gallery and budget under schedules that a seed decides, in virtual time.

The code is the real one. What is simulated is what it runs on: the event loop (`loop`), whose time jumps from
one event to the next and in which threads are callbacks that come when the seed says; the engines, which take
their time, fail and hang; the models and indexes, which are numbers. A schedule (`worlds`) has requests,
cancellations, deadlines, failures, reloads, new versions and a stop, and each world checks what must hold
whatever the order: every request is answered once, right or with an error that it may have, none is late,
none is lost, bounds are kept, nothing is left over, and it ends.

    python -m tests.simulation --seeds 1000000     # a million schedules, on all cores
    python -m tests.simulation --seed 4711         # one, with everything that happened in it
"""
