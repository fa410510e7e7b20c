"""Pairs of texts: one row of two client inputs, the second cut, token types with it; all of it in the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from foreseen.errors import BadInput, SetupError
from foreseen.inference.selftest import example_rows
from foreseen.keys.key import Framer
from foreseen.modelspec.artifact import ArtifactFile, preparation_digest
from foreseen.modelspec.manifest import Manifest, ModelInput, ModelOutput, ModelSignature, load
from foreseen.modelspec.prepare import Preparer
from foreseen.modelspec.rows import split, stack
from foreseen.protocol.wire import InputTensor
from foreseen.types import Row

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d", "e", "ask"]
MOST = 8


def tokenizer() -> bytes:
    """A word a token; pairs are `[CLS] a [SEP] b [SEP]` with types 0 and 1."""
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.add_special_tokens(["[SEP]"])
    return made.to_str().encode()


def manifest(**step: Any) -> Manifest:
    ids = {"datatype": "INT64", "shape": ["rows", "tokens"]}
    inputs = [{"name": "input_ids", **ids}, {"name": "mask", **ids, "role": "mask", "of": "input_ids"}]
    if "types" in step:
        inputs.append({"name": step["types"], **ids})
    outputs = [{"name": "logits", "datatype": "FP32", "shape": ["rows", 1]}]
    texts: list[dict[str, Any]] = [
        {"name": name, "datatype": "BYTES", "shape": ["rows"]} for name in ("query", "document")
    ]
    texts[0]["tokenizer"] = {"ids": "input_ids", "max_tokens": MOST, "pair": "document"} | step
    return msgspec.convert(
        {
            "name": "m",
            "client": {"inputs": texts, "outputs": outputs},
            "model": {"inputs": inputs, "outputs": outputs},
        },
        Manifest,
    )


TOML = """
name = "m"
client.outputs = [{ name = "logits", datatype = "FP32", shape = ["rows", 1] }]
model.inputs = [{ name = "input_ids", datatype = "INT64", shape = ["rows", "tokens"] }]
model.outputs = [{ name = "logits", datatype = "FP32", shape = ["rows", 1] }]

[[client.inputs]]
name = "query"
datatype = "BYTES"
shape = ["rows"]
tokenizer = { ids = "input_ids", max_tokens = 8, MORE }

[[client.inputs]]
name = "number"
datatype = "INT64"
shape = ["rows"]
"""
TYPED = manifest(types="token_type_ids")


def rows(one: Manifest, *pairs: tuple[str, str]) -> list[Row]:
    texts = [np.array([text.encode() for text in column], object) for column in zip(*pairs, strict=True)]
    given = [InputTensor(name, "BYTES", array) for name, array in zip(("query", "document"), texts, strict=True)]
    return list(Preparer(one, {"tokenizer.json": tokenizer()}).rows(given))


def test_a_pair_is_one_row_with_token_types() -> None:
    """`[CLS] query [SEP] document [SEP]`, types 0 up to the first [SEP] and 1 after it."""
    (row,) = rows(TYPED, ("a b", "c"))
    assert [tensor.tolist() for tensor in row.tensors] == [[1, 4, 5, 2, 6, 2], [0, 0, 0, 0, 1, 1]]
    (row,) = rows(manifest(), ("a b", "c"))
    assert [tensor.tolist() for tensor in row.tensors] == [[1, 4, 5, 2, 6, 2]]


def test_only_the_document_is_cut() -> None:
    (row,) = rows(TYPED, ("a b c", "d d d d d d"))
    assert row.tensors[0].tolist() == [1, 4, 5, 6, 2, 7, 7, 2]


def test_a_query_that_leaves_no_room_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"inputs\.query: a text is too long"):
        rows(TYPED, ("a", "b"), ("a b c d e a b c", "d"))


def test_a_prompt_stands_before_the_query() -> None:
    (row,) = rows(manifest(prompt="ask "), ("a", "c"))
    assert row.tensors[0].tolist() == [1, 9, 4, 2, 6, 2]


def test_keys_differ_where_only_the_types_do() -> None:
    """Two pairs with the same ids: where the query ends is in the key by the token types."""
    frames = Framer(TYPED.model).frames
    one, two = rows(TYPED, ("a [SEP] b", "c"), ("a", "b [SEP] c"))
    assert one.tensors[0].tolist() == two.tensors[0].tolist()
    assert len(set(frames([one, two]))) == 2


def test_pairs_asked_again_are_the_same_rows() -> None:
    """The memo of texts tells ("ab", "c") from ("a", "bc") and gives back what the tokenizer gave."""
    preparer = Preparer(TYPED, {"tokenizer.json": tokenizer()})
    pairs = [("a b", "c"), ("a", "b c"), ("", ""), ("a b", "c")]
    given = [
        InputTensor(name, "BYTES", np.array([pair[at].encode() for pair in pairs], object))
        for at, name in enumerate(("query", "document"))
    ]
    first, again = ([[tensor.tolist() for tensor in row.tensors] for row in preparer.rows(given)] for _ in range(2))
    assert first == again == [[tensor.tolist() for tensor in row.tensors] for row in rows(TYPED, *pairs)]
    assert first[0] == first[3] != first[1]


def test_a_batch_of_pairs_comes_apart_as_it_was_put_together() -> None:
    """Token types have no mask of their own: they are cut with the ids, whose dimension they share."""
    made = rows(TYPED, ("a b", "c d"), ("a", "c"), ("a b c", "d d d d"))
    back = split(stack(made, TYPED.model), TYPED.model)
    assert [[t.tolist() for t in row.tensors] for row in back] == [[t.tolist() for t in row.tensors] for row in made]


def test_a_mask_cuts_inputs_of_a_fixed_size_too() -> None:
    """An input without a named dimension is cut by its own mask only."""
    signature = ModelSignature(
        (
            ModelInput("ids", "INT64", ("rows", 4)),
            ModelInput("mask", "INT64", ("rows", 4), "mask", "ids"),
            ModelInput("other", "INT64", ("rows", 4)),
        ),
        (ModelOutput("y", "FP32", ("rows",)),),
    )
    ones = np.ones((1, 4), np.int64)
    (row,) = split({"ids": ones, "mask": np.array([[1, 1, 0, 0]]), "other": ones}, signature)
    assert [tensor.tolist() for tensor in row.tensors] == [[1, 1], [1, 1, 1, 1]]


def test_the_self_test_sends_types_that_every_table_has() -> None:
    """Made-up ids go up to 7; token types are 0, and no row is longer than the tokenizer would make it."""
    made = example_rows(TYPED)
    assert {int(row.tensors[1].max()) for row in made} == {0}
    assert max(len(row.tensors[0]) for row in made) == MOST


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ('pair = "nobody"', "no other client input is called 'nobody'"),
        ('pair = "query"', "no other client input is called 'query'"),
        ('pair = "number"', r"'number' must be BYTES \['rows'\]"),
        ('types = "token_type_ids"', r"types: is for pairs"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, step: str, why: str) -> None:
    """A pair names another text input of the client's; token types are for pairs."""
    path = tmp_path / "model.toml"
    path.write_text(TOML.replace("MORE", step))
    with pytest.raises(SetupError, match=why):
        load(path)


def test_manifests_without_pairs_keep_their_digest() -> None:
    """The new fields are left out of the preparation's digest while they are not there: no cache is emptied by them."""
    plain = msgspec.convert(
        {
            "name": "m",
            "client": {
                "inputs": [
                    {
                        "name": "text",
                        "datatype": "BYTES",
                        "shape": ["rows"],
                        "tokenizer": {"ids": "input_ids", "max_tokens": 8},
                    }
                ],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": ["rows", 2]}],
            },
            "model": {
                "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": ["rows", "tokens"]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": ["rows", 2]}],
            },
        },
        Manifest,
    )
    files = (ArtifactFile("tokenizer.json", "ab" * 32, 3),)
    assert preparation_digest(plain, files) == "49c49a43b6eb6182c261024208ac4525279f2c5aa4079738553de5d10d292fe9"
    assert preparation_digest(TYPED, files) != preparation_digest(manifest(), files)
