"""An ONNX file that was fetched → the fp32 graph with the declared signature, all of its data inside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from foreseen.errors import SetupError
from foreseen.models.graphs import external_data, onnx_write
from foreseen.modelspec.manifest import Manifest

DEFAULT_FILE = "model.onnx"


def make(manifest: Manifest, folder: Path) -> ModelProto:
    """`source.options.file` (by default model.onnx). Raises SetupError naming what is wrong."""
    options = manifest.source.options if manifest.source else {}
    path = folder / str(options.get("file", DEFAULT_FILE))
    model = read(path)
    for side, declared, there in (
        ("inputs", manifest.model.inputs, inputs(model)),
        ("outputs", manifest.model.outputs, list(model.graph.output)),
    ):
        wanted, found = {spec.name for spec in declared}, {value.name for value in there}
        if (side == "inputs" and wanted != found) or not wanted <= found:
            raise SetupError(f"{path.name}: its {side} are {sorted(found)}, the manifest says {sorted(wanted)}")
    return model


def read(path: Path) -> ModelProto:
    """Parse and check an ONNX file. Data in another file are read from beside it and nowhere else."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        external_data.merge(tensors(model), path.parent)
        onnx.checker.check_model(model)
    except SetupError as error:
        raise SetupError(f"{path.name}: {error}") from None
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise SetupError(f"{path.name}: is not a valid ONNX file: {str(error).splitlines()[0]}") from None
    return model


def copy(path: Path, target: Path) -> None:
    """The file unchanged, or merged with its external data into one file."""
    model = onnx.load_model_from_string(path.read_bytes())
    if any(external_data.is_external(tensor) for tensor in tensors(model)):
        external_data.merge(tensors(model), path.parent)
        onnx_write.write(model, target)
    else:
        shutil.copyfile(path, target)


def inputs(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """What has to be fed: before IR version 4 the weights are listed among the inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor anywhere in the model: initializers, sparse ones, attributes, subgraphs, functions."""
    yield from _of_graph(model.graph)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)
    for function in model.functions:
        for node in function.node:
            yield from _of_attributes(node.attribute)
        yield from _of_attributes(function.attribute_proto)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _of_graph(graph)
