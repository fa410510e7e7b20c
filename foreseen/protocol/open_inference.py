"""The messages of the Open Inference Protocol over gRPC, made of `open_inference.binpb`, which protoc compiles from
`open_inference.proto`.

The descriptors are read at run time, rather than through generated modules, for two reasons. Generated code is bound to
one major version of protobuf, and other packages of an environment pin theirs. And generated modules register package
`inference` in the default pool, where those of tritonclient, KServe or MLServer in the same process would collide.
Needs protobuf (extra `grpc`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

FILE, SERVICE = "open_inference.proto", "inference.GRPCInferenceService"
COMPILED = Path(__file__).with_suffix(".binpb")


@cache
def pool() -> Any:
    """The descriptor pool of this protocol alone."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool

    made = DescriptorPool()
    for file in FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
        made.Add(file)
    return made


@cache
def message(name: str) -> Any:
    """The class of a message of the package, as `ModelInferRequest`."""
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(pool().FindMessageTypeByName(f"inference.{name}"))


@cache
def methods() -> dict[str, tuple[Any, Any]]:
    """The classes of request and reply by the name of the service's method."""
    service = pool().FindServiceByName(SERVICE)
    return {one.name: (message(one.input_type.name), message(one.output_type.name)) for one in service.methods}
