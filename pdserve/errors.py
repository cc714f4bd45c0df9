"""One tree of errors.

::

    PdserveError                     every error that pdserve raises on purpose
    ├── UsageError                   the command line or a setting is wrong
    │   ├── SettingsError            config.yml, environment
    │   └── OnlyClientError          pdserve-client is installed, and that takes pdserve itself
    ├── FetchError                   a download failed
    │   ├── OfflineError             a download is needed, and the network is forbidden
    │   ├── ChecksumError            a file is not the one expected
    │   ├── ArchiveError             an archive is broken, or refuses to be trusted
    │   └── DiskError                no space, or no permission to write
    ├── InterruptError               Ctrl-C; says what is kept and how to go on
    ├── OutputError                  standard output takes nothing more
    ├── InUseError                   what is to be removed is in use by a server, or being written
    ├── ModelError                   a model's files are missing or unreadable
    │   └── AliasError               a feed or fetch that is not there
    ├── EngineError                  an engine failed while running
    │   ├── EngineMissingError       the package of an engine is not installed
    │   ├── DeviceError              the device asked for is not usable
    │   ├── UnsupportedModelError    this engine cannot run this model
    │   ├── DisagreementError        an optimised model answers too differently from the float one
    │   └── FeedError                arrays that do not fit the model's feeds
    ├── RequestError                 the caller's request is at fault
    │   ├── UnauthorizedError        the caller shows no key, or a wrong one
    │   ├── PackageError             keys and values do not match, a bad tensor
    │   ├── WrongServiceError        no such service here
    │   ├── ImageError               the bytes are no image we can read
    │   │   └── ImageTooLargeError   more pixels than the limit
    │   └── BodyTooLargeError        more bytes, or images, than the limit
    ├── OverloadedError              the queue is full
    ├── DeadlineError                the answer would come too late
    ├── ClosedError                  the server is stopping, or not ready
    ├── IndexFolderError             an index's files are missing, broken, or do not belong together
    │   └── OtherEmbedderError       the index was built with another embedder
    ├── GalleryError                 images or labels that cannot become entries of an index
    │   └── NoSuchEntryError         no entry of an index has this label, image or id
    └── ClientError                  a client got no usable answer
        ├── UnreachableError         nobody answers at that address, or not whom we trust
        ├── KeyRefusedError          the server wants a key, or another one
        └── BusyError                the server is overloaded; the same request may do later

Each class says what it becomes outside: the process's exit code, the HTTP status, the name of
the gRPC status code and Paddle Serving's ``err_no`` (see the pipeline protocol). A message is one
sentence that says what was wrong, with the value, followed by what to do next. It may quote a stranger's
file or request: what would break a line or drive a terminal is escaped, and a giant is shortened.
"""

import unicodedata
from collections.abc import Mapping
from typing import Any

_LONGEST = 2_000
# Control characters, lone surrogates, separators of lines and of paragraphs.
_UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
# What turns the direction of the text that follows: embeddings, overrides and isolates (Unicode, annex 9).
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Text on one line, as it is, with what would break the line or drive a terminal escaped."""
    if text.isprintable():
        return text
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in unshown(text)})


def unshown(text: str) -> set[str]:
    """The characters of a text that are not for eyes: controls, escapes, lone surrogates, turns."""
    return {c for c in text if c in _TURNING or unicodedata.category(c) in _UNSHOWN}


def shortened(text: str) -> str:
    """A giant's beginning and end."""
    half = _LONGEST // 2 - 2
    return text if len(text) <= _LONGEST else f"{text[:half]} … {text[-half:]}"


class PdserveError(Exception):
    """Root of every error that pdserve raises on purpose.

    Attributes: ``code`` is the stable word in JSON answers, ``exit_code`` the process's status,
    ``http_status``, ``grpc_status`` (a ``grpc.StatusCode`` name) and ``err_no`` the protocols' codes.
    """

    code = "error"
    exit_code = 1
    http_status = 500
    grpc_status = "INTERNAL"
    err_no = 10000

    def __init__(self, message: str) -> None:
        self.message = shortened(visible(shortened(message)))
        super().__init__(self.message)


class UsageError(PdserveError):
    code = "usage"
    exit_code = 2
    err_no = 4000


class SettingsError(UsageError):
    code = "settings"


class OnlyClientError(UsageError):
    """``what``: a command, an option, a file: the beginning of the sentence."""

    code = "only_client"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} needs pdserve itself, not pdserve-client alone: pip install pdserve.")


class FetchError(PdserveError):
    code = "fetch"


class OfflineError(FetchError):
    code = "offline"


class ChecksumError(FetchError):
    code = "checksum"


class ArchiveError(FetchError):
    code = "archive"


class DiskError(FetchError):
    code = "disk"


class InterruptError(PdserveError):
    code = "interrupted"
    exit_code = 130


class OutputError(PdserveError):
    code = "output"


def unforeseen(error: OSError) -> DiskError:
    """What the system refuses and no command has words of its own for: a name too long, a loop of links."""
    names = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    said = error.strerror or str(error) or type(error).__name__
    if not names:
        return DiskError(f"The system says: {said}; free what is full or taken, and type the command again.")
    return DiskError(f"Cannot use {names}: {said}; check the path, and who may read and write there.")


class InUseError(PdserveError):
    code = "in_use"


class ModelError(PdserveError):
    code = "model"
    err_no = 3003


class AliasError(ModelError):
    code = "alias"
    err_no = 5000


class EngineError(PdserveError):
    code = "engine"


class EngineMissingError(EngineError):
    code = "engine_missing"
    err_no = 3003


class DeviceError(EngineError):
    code = "device"
    err_no = 3003


class UnsupportedModelError(EngineError):
    code = "unsupported_model"
    err_no = 3003


class DisagreementError(EngineError):
    """``report``: the figures, in the form of an optimised model's report."""

    code = "disagreement"

    def __init__(self, message: str, report: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.report = report


class FeedError(EngineError):
    code = "feed"
    err_no = 5000


class RequestError(PdserveError):
    code = "bad_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class UnauthorizedError(RequestError):
    code = "unauthorized"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class PackageError(RequestError):
    code = "bad_package"
    err_no = 8000


class WrongServiceError(RequestError):
    code = "wrong_service"
    http_status = 404
    grpc_status = "NOT_FOUND"
    err_no = 3002


class ImageError(RequestError):
    code = "bad_image"


class ImageTooLargeError(ImageError):
    code = "image_too_large"
    http_status = 413


class BodyTooLargeError(RequestError):
    code = "body_too_large"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class OverloadedError(PdserveError):
    code = "overloaded"
    http_status = 503
    grpc_status = "RESOURCE_EXHAUSTED"


class DeadlineError(PdserveError):
    code = "deadline"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    err_no = 6000


class ClosedError(PdserveError):
    code = "closed"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    err_no = 3001


class IndexFolderError(PdserveError):
    code = "index"
    err_no = 3003


class OtherEmbedderError(IndexFolderError):
    code = "other_embedder"


class GalleryError(PdserveError):
    code = "gallery"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class NoSuchEntryError(GalleryError):
    code = "no_such_entry"
    http_status = 404
    grpc_status = "NOT_FOUND"


class ClientError(PdserveError):
    code = "client"
    err_no = 9000


class UnreachableError(ClientError):
    code = "unreachable"


class KeyRefusedError(ClientError):
    code = "key_refused"


class BusyError(ClientError):
    code = "busy"
