"""gRPC's server reflection: what it says, to whom, and what it refuses."""

from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from pdserve.errors import PdserveError
from pdserve.formats.protos import INFERENCE, message, pipeline
from pdserve.services.budget import Entrance
from pdserve.services.grpc import reflection
from pdserve.services.grpc.intake import Intake
from pdserve.services.grpc.reflection import answered
from pdserve.services.repository import Repository
from pdserve.settings import ServerSettings
from tests.services.listeners import RecordingService, listeners

REQUEST, RESPONSE = (f"grpc.reflection.v1.ServerReflection{kind}" for kind in ("Request", "Response"))
SERVICES = [
    pipeline.SERVICE,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    INFERENCE,
]


def asked(**fields: Any) -> Any:
    return answered(message(REQUEST)(**fields).SerializeToString())


def test_services_are_listed_and_their_files_are_whole() -> None:
    listed = asked(list_services="*", host="here")
    assert [each.name for each in listed.list_services_response.service] == SERVICES
    assert (listed.valid_host, listed.original_request.list_services) == ("here", "*")
    pool = descriptor_pool.DescriptorPool()
    for name in SERVICES:
        (file,) = asked(file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
        described = descriptor_pb2.FileDescriptorProto.FromString(file)
        assert asked(file_by_filename=described.name).file_descriptor_response.file_descriptor_proto == [file]
        pool.Add(described)
    infer = pool.FindServiceByName(INFERENCE).FindMethodByName("ModelInfer")
    assert infer.input_type.fields_by_name["raw_input_contents"].number == 7


@pytest.mark.parametrize(
    "symbol",
    [
        "inference.ModelInferRequest",
        "inference.ModelInferRequest.InferInputTensor",
        "inference.ModelInput.Format",
        "inference.DataType",
        f"{INFERENCE}.ModelInfer",
        "inference.ModelInferRequest.id",
        "grpc.health.v1.HealthCheckResponse.ServingStatus",
    ],
)
def test_symbols_are_found(symbol: str) -> None:
    assert asked(file_containing_symbol=symbol).file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize(
    "fields",
    [
        {"file_containing_symbol": "pdserve.program.ProgramDesc"},  # no service speaks of it
        {"file_containing_symbol": "none"},
        {"file_containing_symbol": ""},
        {"file_by_filename": "../../etc/passwd"},
        {"file_by_filename": "x" * 5000},
        {"all_extension_numbers_of_type": "inference.ModelInferRequest"},
        {"file_containing_extension": {"containing_type": "x", "extension_number": 1}},
        {},
    ],
)
def test_what_is_not_there(fields: dict[str, Any]) -> None:
    error = asked(**fields).error_response
    assert error.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert len(error.error_message) < 200


@pytest.mark.parametrize("question", [b"\xff", b"\x1a\x02\xff\xff", b"\x3a" * 70_000, b"\x3a\0" * 20])
def test_what_is_no_question(question: bytes) -> None:
    with pytest.raises(PdserveError):
        answered(question)


def ask(target: str, version: str = "v1", metadata: Any = ()) -> list[str]:
    method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    question = message(REQUEST)(list_services="").SerializeToString()
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.stream_stream(method, response_deserializer=message(RESPONSE).FromString)
        first, second = call(iter((question, question)), timeout=60, metadata=metadata)
    assert first == second
    return [each.name for each in first.list_services_response.service]


def test_a_server_without_a_key_describes_itself() -> None:
    with listeners() as server:
        assert ask(server.target) == ask(server.target, "v1alpha") == SERVICES


def test_a_server_with_a_key_does_so_where_it_is_asked_to_and_to_callers_with_a_key() -> None:
    key = (("x-api-key", "k" * 32),)
    with listeners(api_key="k" * 32) as server:
        with pytest.raises(grpc.RpcError) as refused:
            ask(server.target, metadata=key)
        error: Any = refused.value
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    with listeners(api_key="k" * 32, grpc_reflection=True) as server:
        with pytest.raises(grpc.RpcError) as refused:
            ask(server.target)
        error = refused.value
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert ask(server.target, metadata=key) == SERVICES


def test_those_who_look_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflection, "MAX_STREAMS", 0)
    with listeners() as server, pytest.raises(grpc.RpcError) as refused:
        ask(server.target)
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_handlers_follow_the_settings() -> None:
    services = Repository.of(RecordingService())
    for given, there in (({}, True), ({"api_key": "k" * 32}, False)):
        intake = Intake(Entrance(ServerSettings(name="x", **given)))  # type: ignore[arg-type]
        assert bool(reflection.methods(services, intake)) is there
