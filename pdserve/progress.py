"""What a long task tells of itself while it runs; the console draws it, the default says nothing."""

from typing import Protocol


class Progress(Protocol):
    """Told from several threads at once, each with its own ``name``.

    ``start`` may come again for a name (a download that starts anew, or its next attempt);
    ``done`` comes once at the end, well or badly.
    """

    def start(self, name: str, total: int | None, completed: int) -> None:
        """``total`` bytes (None: not known) are to come, of which ``completed`` are there."""

    def advance(self, name: str, n: int) -> None:
        """``n`` more bytes are there."""

    def done(self, name: str) -> None:
        """Nothing more will be told of this name."""

    def note(self, name: str, text: str) -> None:
        """A few words on what is going on: a retry, a wait, a check."""


class Silent:
    """Tells nobody."""

    def start(self, name: str, total: int | None, completed: int) -> None:
        pass

    def advance(self, name: str, n: int) -> None:
        pass

    def done(self, name: str) -> None:
        pass

    def note(self, name: str, text: str) -> None:
        pass


SILENT = Silent()
