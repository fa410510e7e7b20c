"""Decodes Arrow columns of any encoding to plain ones: no dictionaries, runs, views or extension types.

pandas writes categories as dictionaries, polars writes string views, and both are another spelling of the same values.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)


def decoded_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """All columns decoded, so that batches of one file can be joined: their dictionaries may differ."""
    columns = [decoded(column) for column in batch.columns]
    if all(new is old for new, old in zip(columns, batch.columns, strict=True)):
        return batch
    return pa.RecordBatch.from_arrays(columns, batch.schema.names) if columns else batch


def decoded(column: pa.Array) -> pa.Array:
    """The same values and nulls in a plain type; a column of a plain type as it is."""
    kind = column.type
    plain = plain_type(kind)
    if plain == kind:
        return column
    if isinstance(column, pa.DictionaryArray):
        return decoded(column.dictionary).take(column.indices)
    if pa.types.is_run_end_encoded(kind):
        return decoded(pc.run_end_decode(column))
    if isinstance(kind, pa.FixedShapeTensorType):
        return _nested(column.storage, kind, plain)
    if isinstance(column, pa.ExtensionArray) and not pa.types.is_boolean(plain):
        return decoded(column.storage)
    if _castable(kind):
        try:
            return column.cast(plain)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    return pa.array(column.to_pylist(), plain)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """What a type decodes to; itself for one that is plain, or that stands for no number, text or list of them."""
    if isinstance(kind, pa.UuidType):  # its storage is 16 bytes, which is not what a model is asked with
        return kind
    if isinstance(kind, pa.Bool8Type):
        return pa.bool_()
    if isinstance(kind, pa.FixedShapeTensorType):  # nested, so that [8, 2] is never taken for [2, 8]
        plain = plain_type(kind.value_type)
        for size in reversed(_logical_shape(kind)):
            plain = pa.list_(plain, size)
        return plain
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_fixed_size_list(kind):
        value = plain_type(kind.value_type)
        return kind if value == kind.value_type else pa.list_(value, kind.list_size)
    if any(is_list(kind) for is_list in _LISTS):
        value = plain_type(kind.value_type)
        views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
        return kind if value == kind.value_type and not views else pa.large_list(value)
    return kind


def leaf_type(kind: pa.DataType) -> tuple[int, pa.DataType]:
    """How deep a plain type is nested in lists, and the type of the elements."""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth, kind


def with_leaf(kind: pa.DataType, leaf: pa.DataType) -> pa.DataType:
    """The same nesting around another type of element."""
    depth, _ = leaf_type(kind)
    for _ in range(depth):
        leaf = pa.large_list(leaf)
    return leaf


def _logical_shape(kind: pa.FixedShapeTensorType) -> list[int]:
    """The shape as the writer means it: `permutation` says which stored axis each one is."""
    return [kind.shape[axis] for axis in kind.permutation or range(len(kind.shape))]


def _nested(storage: pa.Array, kind: pa.FixedShapeTensorType, plain: pa.DataType) -> pa.Array:
    """Tensors as lists in lists, in the order of their logical axes."""
    values = storage.drop_null().flatten()
    if kind.permutation is not None:
        stored = values.to_numpy(zero_copy_only=False).reshape(-1, *kind.shape)
        values = pa.array(stored.transpose(0, *(axis + 1 for axis in kind.permutation)).ravel())
    for size in reversed(_logical_shape(kind)):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    place = iter(range(len(storage)))
    return values.cast(plain).take(pa.array([next(place) if row.is_valid else None for row in storage], pa.int64()))


def _castable(kind: pa.DataType) -> bool:
    """Whether Arrow's own cast is right: pyarrow 26 casts `list_view` [[1, 2], [3]] to [[1, 2], []]."""
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return False
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _castable(kind.value_type)
    return True
