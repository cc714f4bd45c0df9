"""``python -m pdserve``: the same as the ``pdserve`` command, or as ``pdserve-client`` where only that is."""

from importlib.util import find_spec

from pdserve.cli import client, main

if find_spec("pdserve.commands.table") is None:
    client()
else:
    main()
