"""What Triton's client, unmodified, gets of a pdserve server. Run by test_oip.py with tritonclient's Python.

Arguments: HTTP address, gRPC address, two image files. Prints JSON: call -> what it gave.
"""

import asyncio
import json
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio

http, rpc, *paths = sys.argv[1:]
files = [Path(path).read_bytes() for path in paths]
tensor = np.zeros((2, 3, 32, 32), np.float32)
tensor[0, 0] = tensor[1, 2] = 1
pixels = np.zeros((2, 30, 40, 3), np.uint8)
pixels[0, ..., 0] = pixels[1, ..., 2] = 255
arrays = {"BYTES": np.array(files, object), "FP32": tensor, "UINT8": pixels}
found = {}


def inputs(module, datatype, **binary):
    array = arrays[datatype]
    given = module.InferInput("image", list(array.shape), datatype)
    given.set_data_from_numpy(array, **binary)
    return [given]


def refused(name, call):
    try:
        call()
        found[name] = "answered"
    except Exception as error:
        found[name] = [
            type(error).__name__,
            str(error.status()) if hasattr(error, "status") else "",
            str(error),
        ]


def shown(result):
    return result.as_numpy("prediction").astype(float).round(5).tolist()


def about(name, client):
    """Everything that is not inference."""
    as_json = {} if name == "http" else {"as_json": True}
    found[f"{name} live"] = client.is_server_live()
    found[f"{name} ready"] = client.is_server_ready()
    found[f"{name} model ready"] = client.is_model_ready("tiny")
    found[f"{name} version ready"] = client.is_model_ready("tiny", "1")
    found[f"{name} server"] = client.get_server_metadata(**as_json)
    found[f"{name} metadata"] = client.get_model_metadata("imagenet", **as_json)
    found[f"{name} config"] = client.get_model_config("tiny", **as_json)
    found[f"{name} statistics"] = client.get_inference_statistics("tiny", **as_json)
    found[f"{name} index"] = client.get_model_repository_index(**as_json)
    refused(f"{name} system shared memory", lambda: client.register_system_shared_memory("r", "/r", 8))
    refused(f"{name} system shared memory status", client.get_system_shared_memory_status)
    refused(f"{name} cuda shared memory", lambda: client.register_cuda_shared_memory("r", b"eHh4", 0, 8))
    refused(f"{name} no such model", lambda: client.get_model_metadata("none"))
    refused(f"{name} no image", lambda: client.infer("tiny", bad(name)))


def bad(name):
    module = over_http if name == "http" else over_grpc
    given = module.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([b"no image"], object))
    return [given]


def repository(name, client, headers):
    client.unload_model("imagenet", headers=headers)
    found[f"{name} unloaded"] = client.is_server_ready()
    client.load_model("imagenet", headers=headers)
    found[f"{name} loaded"] = client.is_server_ready()


with over_http.InferenceServerClient(http, network_timeout=60) as client:
    about("http", client)
    for datatype in arrays:
        for binary in (True, False):
            if datatype == "BYTES" and not binary:  # the client cannot write bytes in JSON
                continue
            for out in (True, False):
                wanted = [over_http.InferRequestedOutput("prediction", binary_data=out)]
                given = inputs(over_http, datatype, binary_data=binary)
                found[f"http {datatype} {binary} {out}"] = shown(client.infer("tiny", given, outputs=wanted))
    wanted = [over_http.InferRequestedOutput("prediction", class_count=2)]
    classes = client.infer("tiny", inputs(over_http, "FP32"), outputs=wanted).as_numpy("prediction")
    found["http classes"] = [[text.decode() for text in row] for row in classes]
    labels = client.infer("imagenet", inputs(over_http, "BYTES"), request_id="mine", parameters={"top_k": 1})
    found["http labels"] = [json.loads(text) for text in labels.as_numpy("labels")]
    found["http id"] = labels.get_response()["id"]
    found["http async"] = shown(client.async_infer("tiny", inputs(over_http, "BYTES")).get_result())
    repository("http", client, {"X-Pdserve-Write": "1"})

with over_grpc.InferenceServerClient(rpc) as client:
    about("grpc", client)
    for datatype in arrays:
        found[f"grpc {datatype}"] = shown(client.infer("tiny", inputs(over_grpc, datatype)))
    wanted = [over_grpc.InferRequestedOutput("prediction", class_count=2)]
    classes = client.infer("tiny", inputs(over_grpc, "FP32"), outputs=wanted).as_numpy("prediction")
    found["grpc classes"] = [[text.decode() for text in row] for row in classes]
    labels = client.infer("imagenet", inputs(over_grpc, "BYTES"), request_id="mine", parameters={"top_k": 1})
    found["grpc labels"] = [json.loads(text) for text in labels.as_numpy("labels")]
    found["grpc id"] = labels.get_response().id
    answers = queue.Queue()
    client.async_infer("tiny", inputs(over_grpc, "BYTES"), lambda result, error: answers.put((result, error)))
    result, error = answers.get(timeout=60)
    found["grpc async"] = shown(result)
    client.start_stream(lambda result, error: answers.put((result, error)))
    streamed = []
    for number, given in enumerate((inputs(over_grpc, "BYTES"), bad("grpc"), inputs(over_grpc, "FP32"))):
        client.async_stream_infer("tiny", given, request_id=str(number))
        result, error = answers.get(timeout=60)
        streamed.append(str(error) if error else [result.get_response().id, shown(result)])
    client.stop_stream()
    found["grpc stream"] = streamed
    repository("grpc", client, None)


async def asynchronous():
    async with over_http_aio.InferenceServerClient(http) as client:
        found["http aio ready"] = await client.is_model_ready("tiny")
        found["http aio"] = shown(await client.infer("tiny", inputs(over_http_aio, "BYTES")))
    async with over_grpc_aio.InferenceServerClient(rpc) as client:
        found["grpc aio ready"] = await client.is_model_ready("tiny")
        found["grpc aio"] = shown(await client.infer("tiny", inputs(over_grpc_aio, "FP32")))

        async def requests():
            for number in range(2):
                yield {
                    "model_name": "tiny",
                    "inputs": inputs(over_grpc_aio, "BYTES"),
                    "request_id": str(number),
                }

        streamed = []
        async for result, error in client.stream_infer(requests()):
            streamed.append(str(error) if error else [result.get_response().id, shown(result)])
        found["grpc aio stream"] = streamed


asyncio.run(asynchronous())
print(json.dumps(found))
