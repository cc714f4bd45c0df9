"""faiss, imported when it is needed."""

import threading
import warnings
from typing import Any

from pdserve.errors import EngineMissingError

_lock = threading.Lock()
_module: Any = None


def faiss() -> Any:
    """The module faiss. Raises EngineMissingError with the pip line."""
    global _module
    with _lock:
        if _module is None:
            with warnings.catch_warnings():
                # SWIG's own types, made when the module first loads; Python 3.12 and newer remark on them.
                warnings.filterwarnings(
                    "ignore", r"builtin type \w+ has no __module__ attribute", category=DeprecationWarning
                )
                _module = _load()
    return _module


def _load() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise EngineMissingError(
            f"An index needs faiss, which does not load ({error}): `pip install faiss-cpu`."
        ) from error
    return faiss
