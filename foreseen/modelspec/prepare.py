"""Client tensors → rows: the declared normalization turns what was sent into what the model sees.

The key covers exactly what is sent to the model, so that a hit equals the answer to the first request. Pure and without
I/O; expensive (tokenizer, images), so servers run it off their event loop. The only file that imports tokenizers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from foreseen.errors import BadInput, SetupError
from foreseen.modelspec.images import pixels
from foreseen.modelspec.manifest import ClientInput, Manifest, seconds, wire_shape
from foreseen.modelspec.manifest import Tokenizer as TokenizerStep
from foreseen.modelspec.normalize import cast, steps_of, texts
from foreseen.modelspec.rows import mask_lengths
from foreseen.modelspec.tokens.ascii_words import AsciiWords
from foreseen.modelspec.tokens.pair_tokens import PairTokens
from foreseen.modelspec.tokens.text_memo import TextMemo, batches
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import object_array, raw_of
from foreseen.protocol.wire import InputTensor
from foreseen.types import Array, Columns, Row

Column = Sequence[Array]
"""One model input's tensor of every row, without the batch axis."""


class Preparer:
    """Everything between one model's clients and its graph. `assets` are the artifact's files by name."""

    def __init__(self, manifest: Manifest, assets: Mapping[str, bytes]) -> None:
        self._manifest = manifest
        self.keyed = tuple(spec.name for spec in manifest.model.keyed)
        self._inputs = {spec.name: spec for spec in manifest.seen.inputs}
        self._steps = {spec.name: steps_of(spec) for spec in manifest.seen.inputs}
        self._masks = {spec.trim for spec in manifest.seen.inputs if spec.trim}
        self._seconds = seconds(manifest.seen)
        self._tokenizers = {
            spec.name: tokenizer_of(assets, spec.tokenizer)
            for spec in manifest.seen.inputs
            if spec.tokenizer is not None
        }
        self._words = self._word_tables()
        self.heavy = bool(self._tokenizers) or any(spec.image for spec in manifest.seen.inputs)

        self.columnar = self._is_columnar()
        self.text_only = self._text_only()
        self._texts = TextMemo()
        self._pairs = {
            spec.name: PairTokens(spec, self._tokenizers[spec.name], self._texts, self._dtype)
            for spec in manifest.seen.inputs
            if spec.tokenizer is not None and spec.tokenizer.pair is not None
        }

    def rows(self, inputs: Sequence[InputTensor], most_second: int | None = None) -> Sequence[Row]:
        """The rows of a request. `most_second` cuts the second text of pairs to so many tokens. Raises BadInput naming
        the input, or TooLarge.

        Where the manifest says `rows = "together"` there is one row, whose tensors keep their batch axis.
        """
        arrays = self._arrays(inputs)
        if most_second is not None:
            for pairs in self._pairs.values():
                arrays[pairs.second] = pairs.cut(arrays[pairs.second], most_second)
        if self.columnar and all(name in arrays for name in self.keyed):
            return Columns([arrays[name] for name in self.keyed])
        cut = self._manifest.model.has_rows
        columns = self._columns(arrays) if cut else {}
        given = [name for name in self.keyed if name in (columns if cut else arrays)]
        if not given:
            raise BadInput(f"inputs: none of the model's inputs is given; it takes {', '.join(self._inputs)}")
        which = None if len(given) == len(self.keyed) else tuple(self.keyed.index(name) for name in given)
        if not cut:
            return [Row(tuple(arrays[name] for name in given), which)]
        if self._manifest.rows == "together":
            return [Row(tuple(_whole(columns[name]) for name in given), which)]
        return [Row(parts, which) for parts in zip(*(columns[name] for name in given), strict=True)]

    def id_rows(self, items: Sequence[Sequence[int]]) -> Sequence[Row]:
        """The rows of token ids that were given in place of text. Raises BadInput naming the item."""
        spec = next((one for one in self._inputs.values() if one.tokenizer is not None), None)
        if spec is None or spec.tokenizer is None or self.keyed != (spec.tokenizer.ids,):
            raise BadInput("input: the model takes text, no token ids", param="input")
        known, most = self._tokenizers[spec.name].get_vocab_size(), spec.tokenizer.max_tokens
        dtype = next(DATATYPES[i.datatype].dtype for i in self._manifest.model.keyed)
        for at, ids in enumerate(items):
            if len(ids) > most:
                raise BadInput(f"input[{at}]: has {len(ids)} token ids, at most {most} fit", param=f"input[{at}]")
            if max(ids) >= known:
                raise BadInput(f"input[{at}]: the tokenizer has ids below {known} only", param=f"input[{at}]")
        rows = [np.array(ids, dtype) for ids in items]
        return [Row((_whole(rows),))] if self._manifest.rows == "together" else [Row((one,)) for one in rows]

    def token_count(self, rows: Sequence[Row]) -> int | None:
        """The token ids of rows, special tokens included; None where text is not tokenized here."""
        names = [one.tokenizer.ids for one in self._inputs.values() if one.tokenizer is not None]
        if len(names) != 1 or names[0] not in self.keyed:
            return None
        place = self.keyed.index(names[0])
        return sum(row.tensors[place].size for row in rows)

    def _is_columnar(self) -> bool:
        """Whether `table` does what `rows` does: for numbers of fixed shape, in rows that stand alone."""
        seen = self._inputs.values()
        shaped = any(spec.tokenizer or spec.image or spec.trim or spec.datatype == "BYTES" for spec in seen)
        open_ended = any(isinstance(dim, str) for spec in seen for dim in spec.shape[1:])
        return not (shaped or open_ended) and self._manifest.rows == "each"

    def _word_tables(self) -> dict[str, AsciiWords]:
        """A table of words for each text that stands alone and whose tokenizer allows it."""
        steps = {spec.name: spec.tokenizer for spec in self._manifest.seen.inputs if spec.tokenizer is not None}
        alone = {name: step for name, step in steps.items() if step.pair is None}
        made = {
            name: AsciiWords.of(self._tokenizers[name], np.dtype(self._dtype(step.ids)), step.max_tokens)
            for name, step in alone.items()
        }
        return {name: words for name, words in made.items() if words is not None}

    def _text_only(self) -> ClientInput | None:
        """The one input, where it is a text that becomes the ids of a row that stands alone."""
        seen = self._manifest.seen.inputs
        step = seen[0].tokenizer if len(seen) == 1 else None
        alone = step is not None and step.pair is None and self.keyed == (step.ids,)
        return seen[0] if alone and self._manifest.rows == "each" else None

    def text_ids(self, given: list[bytes]) -> list[Array]:
        """The ids of texts of a model that takes nothing else (`text_only`). Raises BadInput."""
        spec = self.text_only
        assert spec is not None
        for step in self._steps[spec.name]:
            given = step(object_array(given)).tolist()
        return self._ids(spec, given)

    def takes(self, name: str, datatype: str) -> bool:
        """Whether an input has this datatype: another one is cast, or refused."""
        return name in self._inputs and self._inputs[name].datatype == datatype

    def normalization(self, name: str, row: tuple[int, ...], *, finite: bool) -> Callable[[bytes], bytes] | None:
        """The declared steps of a numeric input over the bytes of rows of this shape; None where they change nothing.
        `finite`: the numbers are known to be. What it makes raises BadInput."""
        datatype, steps = DATATYPES[self._inputs[name].datatype], self._steps[name]
        if datatype.kind == "f" and finite:  # the first step is about what is not
            steps = steps[1:]
        if not steps:
            return None

        def change(raw: bytes) -> bytes:
            array: Array = np.frombuffer(raw, datatype.dtype).reshape(-1, *row)
            for step in steps:
                array = step(array)
            return raw_of(array, datatype)

        return change

    def table(self, inputs: Sequence[InputTensor]) -> list[Array]:
        """The same rows as one array per keyed input, with their batch axis: for a million rows at a time."""
        assert self.columnar
        arrays = self._arrays(inputs)
        return [arrays[spec.name] for spec in self._manifest.model.keyed]

    def _arrays(self, inputs: Sequence[InputTensor]) -> dict[str, Array]:
        """All inputs, as the signature wants them and normalized, of one number of rows."""
        given = {tensor.name: tensor for tensor in inputs}
        for name in given:
            if name not in self._inputs:
                raise BadInput(f"inputs.{name}: there is no such input; the model takes {', '.join(self._inputs)}")
        arrays = {
            name: self._checked(spec, given.get(name))
            for name, spec in self._inputs.items()
            if name in given or not (spec.ignore or spec.optional)
        }
        if self._manifest.model.has_rows and len({len(array) for array in arrays.values()}) > 1:
            raise BadInput("inputs: the first dimension (rows) differs between inputs")
        return arrays

    def _checked(self, spec: ClientInput, tensor: InputTensor | None) -> Array:
        """One input as the signature wants it, normalized."""
        field = f"inputs.{spec.name}"
        if tensor is None:
            raise BadInput(f"{field}: missing")
        wanted, shape = DATATYPES[spec.datatype], wire_shape(spec.shape)
        array = _one_per_row(tensor.array, spec)
        if array.ndim != len(shape) or any(w not in (-1, got) for w, got in zip(shape, array.shape, strict=True)):
            raise BadInput(f"{field}.shape: is {list(array.shape)}, must be {shape}")
        if tensor.datatype != spec.datatype:
            if not spec.cast:
                raise BadInput(f"{field}.datatype: is {tensor.datatype}, must be {spec.datatype}")
            array = cast(array, DATATYPES[tensor.datatype], wanted, field)
        for step in self._steps[spec.name]:
            array = step(array)
        return array

    def _columns(self, arrays: Mapping[str, Array]) -> dict[str, Column]:
        """Client inputs become model inputs: the row's own tensor of each, unpadded."""
        columns: dict[str, Column] = {}
        for name, array in arrays.items():
            spec = self._inputs[name]
            if spec.tokenizer is not None and spec.tokenizer.pair is not None:
                columns |= self._pairs[name].columns(array, arrays[self._pairs[name].second])
            elif spec.tokenizer is not None:
                columns[spec.tokenizer.ids] = self._tokens(spec, array)
            elif spec.image is not None:
                datatype = next(i.datatype for i in self._manifest.model.inputs if i.name == spec.image.to)
                columns[spec.image.to] = [pixels(one, spec.image, datatype, f"inputs.{name}") for one in array]
            elif spec.trim is not None and spec.trim in arrays:
                lengths = mask_lengths(arrays[spec.trim], f"inputs.{spec.trim}")
                columns[name] = [array[i, :length] for i, length in enumerate(lengths.tolist())]
            elif not spec.ignore and name not in self._masks and name not in self._seconds:
                columns[name] = [array[i, ...] for i in range(len(array))]
        return columns

    def _dtype(self, name: str) -> Any:
        return next(DATATYPES[i.datatype].dtype for i in self._manifest.model.inputs if i.name == name)

    def _tokens(self, spec: ClientInput, array: Array) -> list[Array]:
        return self._ids(spec, array.ravel().tolist())

    def _ids(self, spec: ClientInput, given: list[bytes]) -> list[Array]:
        assert spec.tokenizer is not None
        known = [self._texts.get((spec.name, text)) for text in given]
        new = [at for at, ids in enumerate(known) if ids is None]
        if not new:
            return known  # type: ignore[return-value]
        dtype, words = self._dtype(spec.tokenizer.ids), self._words.get(spec.name)
        if words is not None:
            new = [at for at in new if not self._by_words(spec, words, known, at, given[at])]
            if not new:
                return known  # type: ignore[return-value]
        for some in batches(new, [len(given[at]) for at in new]):
            asked = [given[at] for at in some]
            encoded = self._tokenizers[spec.name].encode_batch_fast(_prompted(spec, asked))
            for at, text, one in zip(some, asked, encoded, strict=True):
                row = np.array(one.ids, dtype)
                known[at] = row
                self._texts.put((spec.name, text), row)
        return known  # type: ignore[return-value]

    def _by_words(self, spec: ClientInput, words: AsciiWords, known: list[Any], at: int, text: bytes) -> bool:
        """Whether the ids of a text were found word by word; they are put where they belong then."""
        prompt = "" if spec.tokenizer is None or spec.tokenizer.prompt is None else spec.tokenizer.prompt
        raw = words.ids(prompt.encode() + text if prompt else text)
        if raw is None:
            return False
        row = known[at] = np.frombuffer(raw, words.dtype)
        self._texts.put((spec.name, text), row)
        return True


def _one_per_row(array: Array, spec: ClientInput) -> Array:
    """[N, 1], as Triton's clients send one element per row, is [N]; and texts [N] are [N, 1] where that is wanted."""
    if len(spec.shape) == 1 and array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if spec.datatype == "BYTES" and spec.shape[1:] == (1,) and array.ndim == 1:
        return array[:, None]
    return array


def _whole(column: Column) -> Array:
    """Rows that belong together, under their batch axis again."""
    if not column:
        raise BadInput('inputs: a model with rows = "together" takes at least one row')
    if len({part.shape for part in column}) > 1:
        raise BadInput('inputs: rows of a model with rows = "together" must have one length')
    return np.stack(column)


def _prompted(spec: ClientInput, asked: Iterable[bytes]) -> list[str]:
    """Texts as the tokenizer gets them: behind their prompt."""
    written = texts(asked, f"inputs.{spec.name}")
    prompt = spec.tokenizer.prompt if spec.tokenizer is not None else None
    return written if not prompt else [prompt + text for text in written]


def tokenizer_of(assets: Mapping[str, bytes], step: TokenizerStep) -> Tokenizer:
    """The tokenizer as it is used for serving and for measuring: no padding, cut as the manifest says."""
    # One request's texts do not need several threads, and a thread pool per process fights the model for cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if step.file not in assets:
        raise SetupError(f"the artifact has no {step.file}; rebuild the model")
    tokenizer = Tokenizer.from_buffer(assets[step.file])
    tokenizer.no_padding()
    tokenizer.enable_truncation(step.max_tokens, strategy="longest_first" if step.pair is None else "only_second")
    return tokenizer
