"""`models/<name>/model.toml` → Manifest: what a model is, how it is built, and what may change before it is asked.

A manifest has two signatures under one name. `[client]` is what clients see (text in, embedding out); `[model]` is what
the model process takes (token ids and a mask). Where they are the same, `[client]` is left out. Dimensions are positive
integers or names; a name stands for a size that differs between requests (shown as -1), and the first dimension of
every input and output is `"rows"`. Outputs that use the name of an input's dimension are cut to the row's own size.
Where the manifest says `rows = "together"`, inputs and outputs may have any shape (a scalar, a state whose second axis
is the batch): the graph gets every request as it was sent.
"""

from foreseen.modelspec.manifest.checks import UPSTREAM_SCHEMES, seconds
from foreseen.modelspec.manifest.files import find, is_name, load, names
from foreseen.modelspec.manifest.manifest import Manifest, Precision
from foreseen.modelspec.manifest.signature import (
    BATCH,
    ClientInput,
    ClientOutput,
    ClientSignature,
    Dim,
    Image,
    ModelInput,
    ModelOutput,
    ModelSignature,
    Tokenizer,
    wire_shape,
)

__all__ = [
    "BATCH",
    "UPSTREAM_SCHEMES",
    "ClientInput",
    "ClientOutput",
    "ClientSignature",
    "Dim",
    "Image",
    "Manifest",
    "ModelInput",
    "ModelOutput",
    "ModelSignature",
    "Precision",
    "Tokenizer",
    "find",
    "is_name",
    "load",
    "names",
    "seconds",
    "wire_shape",
]
