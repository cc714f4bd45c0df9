"""What KServe's client, unmodified, gets of a pdserve server. Run by test_oip.py with kserve's Python.

Arguments: HTTP address, gRPC address, two image files. Prints JSON: call -> what it gave.
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

http, rpc, *paths = sys.argv[1:]
files = [Path(path).read_bytes() for path in paths]
tensor = np.zeros((2, 3, 32, 32), np.float32)
tensor[0, 0] = tensor[1, 2] = 1
arrays = {"BYTES": np.array(files, object), "FP32": tensor}
found = {}


def request(datatype, binary=True):
    array = arrays[datatype]
    given = InferInput("image", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return InferRequest("tiny", [given], request_id="mine")


def shown(answer):
    (output,) = (each for each in answer.outputs if each.name == "prediction")
    return np.asarray(output.as_numpy()).astype(float).round(5).tolist()


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    found["rest live"] = await client.is_server_live(http)
    found["rest ready"] = await client.is_server_ready(http)
    found["rest model ready"] = await client.is_model_ready(http, "tiny")
    for datatype in arrays:
        found[f"rest {datatype}"] = shown(await client.infer(http, request(datatype), model_name="tiny"))
    found["rest FP32 in JSON"] = shown(await client.infer(http, request("FP32", False), model_name="tiny"))
    grpc = InferenceGRPCClient(rpc, timeout=60)
    found["grpc live"] = await grpc.is_server_live()
    found["grpc ready"] = await grpc.is_server_ready()
    found["grpc model ready"] = await grpc.is_model_ready("tiny")
    for datatype in arrays:
        found[f"grpc {datatype}"] = shown(await grpc.infer(request(datatype)))
    found["grpc FP32 in contents"] = shown(await grpc.infer(request("FP32", False)))


asyncio.run(main())
print(json.dumps(found))
