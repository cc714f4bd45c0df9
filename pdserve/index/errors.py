"""What an index says no to."""

from pdserve.errors import PdserveError


class IndexFolderError(PdserveError):
    """The files of an index are missing, broken, or do not belong together."""

    code = "index"
    err_no = 3003


class OtherEmbedderError(IndexFolderError):
    """The index was built with another embedder than the one at hand."""

    code = "other_embedder"


class GalleryError(PdserveError):
    """The images or labels that were given cannot become entries."""

    code = "gallery"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class NoSuchEntryError(GalleryError):
    """Nothing in the index has the label, image or id that was named."""

    code = "no_such_entry"
    http_status = 404
    grpc_status = "NOT_FOUND"
