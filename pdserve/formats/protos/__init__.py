"""Protobuf messages, built from the compiled descriptors beside this file.

``make protos`` compiles the ``.proto`` files into ``descriptors.binpb``, one FileDescriptorSet.
The messages live in a separate pool, so that a process that has also loaded Paddle or
Paddle Serving (which register the same names) does not clash; and no generated code ties pdserve to
one release of protobuf.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

INFERENCE = "inference.GRPCInferenceService"
"""The Open Inference Protocol's service."""

DESCRIPTORS = Path(__file__).with_name("descriptors.binpb")


@cache
def descriptors() -> tuple[Any, ...]:
    """The FileDescriptorProto of each ``.proto`` file."""
    from google.protobuf import descriptor_pb2

    return tuple(descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file)


@cache
def _pool() -> "DescriptorPool":
    from google.protobuf import descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    for file in descriptors():
        pool.Add(file)
    return pool


@cache
def message(full_name: str) -> Any:
    """The class of a message by its full name, ``pdserve.program.ProgramDesc`` for one."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))
