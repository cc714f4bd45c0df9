"""What a long task reports while it runs."""


class Progress:
    """Reports nothing; the console's progress bars are a subclass.

    Called from several threads at once, each with its own ``name``. ``start`` may come again for a name (a
    download that is retried); ``done`` comes once at the end, whether the task succeeded or failed.
    """

    def start(self, name: str, total: int | None, completed: int) -> None:
        """``completed`` of ``total`` bytes or images are done; a total of None is not known."""

    def advance(self, name: str, n: int) -> None:
        """``n`` more are done."""

    def done(self, name: str) -> None:
        """The task has ended."""

    def note(self, name: str, text: str) -> None:
        """A few words on what is going on: a retry, a wait, a check."""

    def warn(self, name: str, text: str) -> None:
        """A line that should stay to be read after the task: what came is less sure than it could be."""


SILENT = Progress()
