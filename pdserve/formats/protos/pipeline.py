"""Names of the pipeline protocol on gRPC, for its server and its clients."""

from typing import Any

from pdserve.formats.protos import message

SERVICE = "baidu.paddle_serving.pipeline_serving.PipelineService"
METHOD = f"/{SERVICE}/inference"
MAX_MESSAGE_BYTES = 256 * 1024 * 1024

# pdserve's own, which a published server never sees: with the first in the metadata of a call, the
# answer gains a key whose value is the JSON that /v1 gives; the second bounds its labels.
RESULTS_METADATA = "pdserve-results"
# The kind of service that is meant by an empty name, where a server has several.
KIND_METADATA = "pdserve-kind"
TOP_K_METADATA = "pdserve-top-k"
RESULTS_KEY = "results"
# In the trailing metadata of a RESOURCE_EXHAUSTED of a full queue: seconds to wait before asking again.
RETRY_AFTER_METADATA = "retry-after"


def request_class() -> Any:
    """The Request message."""
    return message("baidu.paddle_serving.pipeline_serving.Request")


def response_class() -> Any:
    """The Response message."""
    return message("baidu.paddle_serving.pipeline_serving.Response")
