"""A few threads for a list of tasks that mostly wait."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int, cancel: threading.Event
) -> list[Result]:
    """``task(item)`` for every item, ``workers`` at a time; the results in the order of the items.

    Ctrl-C sets ``cancel``, which the tasks are to look at, gives them two seconds and goes on up.
    An exception of a task is raised when the others have ended.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    results: dict[int, Result] = {}
    crashes: list[BaseException] = []
    for i in range(len(items)):
        todo.put(i)

    def work() -> None:
        while not cancel.is_set():
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            try:
                results[i] = task(items[i])
            except BaseException as error:
                crashes.append(error)

    # Daemons, unlike an executor's threads, do not hold up the exit while a server is silent.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(items)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)  # without an end it could not be interrupted on Windows
    except BaseException:
        cancel.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(2)
        raise
    if crashes:
        raise crashes[0]
    return [results[i] for i in range(len(items))]
