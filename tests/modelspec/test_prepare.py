"""Prepare: every declared normalization, and that what is keyed is what the model sees."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image as Pillow

from foreseen.errors import BadInput, SetupError, TooLarge
from foreseen.keys.key import Framer, key_of, keys_of, keys_of_frames, space_key
from foreseen.modelspec.artifact import preparation_digest, read_file, read_record
from foreseen.modelspec.made_up import example_request
from foreseen.modelspec.manifest import Manifest, find, load
from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import array_of_json
from foreseen.protocol.wire import InputTensor, parse_request
from foreseen.types import Array, Columns, Row, Space
from tests.models_fixture import PACKAGED


def manifest(
    datatype: str = "FP32", shape: tuple[Any, ...] = ("rows", 3), rows: str = "each", **declared: Any
) -> Manifest:
    """A manifest with one input `x`, declared so."""
    signature = {"name": "x", "datatype": datatype, "shape": shape}
    outputs = [{"name": "y", "datatype": "FP32", "shape": ["rows"]}]
    return msgspec.convert(
        {
            "name": "m",
            "rows": rows,
            "client": {"inputs": [{**signature, **declared}], "outputs": outputs},
            "model": {"inputs": [signature], "outputs": outputs},
        },
        Manifest,
    )


def tensor(data: Any, datatype: str = "FP32", shape: tuple[int, ...] | None = None, name: str = "x") -> InputTensor:
    shape = shape or np.shape(data)
    return InputTensor(name, datatype, array_of_json(data, DATATYPES[datatype], shape, "inputs[0]"))


def prepared(data: Any, datatype: str = "FP32", given: str | None = None, **declared: Any) -> list[Any]:
    """The first row of input `x` as the model would see it."""
    one = manifest(datatype, ("rows", len(data)), **declared)
    (row,) = Preparer(one, {}).rows([tensor([data], given or datatype)])
    return list(row.tensors[0].tolist())


def frames(preparer: Preparer, one: Manifest, *inputs: InputTensor) -> list[bytes]:
    return Framer(one.model).frames(preparer.rows(inputs))


def test_nothing_is_changed_that_is_not_declared() -> None:
    """Negative zero, denormals and every digit pass as they are."""
    data = [-0.0, 1e-45, 0.1]
    made = prepared(data)
    assert np.array(made, np.float32).tobytes() == np.array(data, np.float32).tobytes()


@pytest.mark.parametrize(
    ("declared", "data", "wanted"),
    [
        ({"zero": True}, [-0.0, 0.0, 1.0], [0.0, 0.0, 1.0]),
        ({"decimals": 1}, [0.14, 0.16, -0.16], [0.1, 0.2, -0.2]),
        ({"decimals": -1}, [14.0, 16.0, 5.1], [10.0, 20.0, 10.0]),
        ({"step": 0.25}, [0.3, 0.4, -0.13], [0.25, 0.5, -0.25]),
        ({"clip": (-1.0, 1.0)}, [-3.0, 0.5, 3.0], [-1.0, 0.5, 1.0]),
        ({"ignore_columns": (0, -1)}, [5.0, 6.0, 7.0], [0.0, 6.0, 0.0]),
        ({"clip": (0.0, 1.0), "decimals": 1}, [0.96, 1.04, -9.0], [1.0, 1.0, 0.0]),
        ({"decimals": 0, "zero": True}, [-0.3, 0.3, 1.2], [0.0, 0.0, 1.0]),
    ],
)
def test_declared_steps_on_floats(declared: dict[str, Any], data: list[float], wanted: list[float]) -> None:
    """Each step alone, and that they run in their fixed order."""
    made = np.array(prepared(data, **declared), np.float32)
    assert made.tobytes() == np.array(wanted, np.float32).tobytes() or (
        np.array_equal(made, np.array(wanted, np.float32)) and "zero" not in declared
    )


def test_declared_steps_on_integers() -> None:
    """Clip, step and blank columns keep the datatype."""
    assert prepared([7, 300, -5], "INT64", clip=(0, 255), step=10.0) == [10, 260, 0]
    assert prepared([7, 8, 9], "INT32", ignore_columns=(1,)) == [7, 0, 9]


def test_rounding_in_the_key_is_rounding_in_the_tensor() -> None:
    """Two inputs on one grid point share an entry, and the model sees the grid point, whoever asks first."""
    one = manifest(step=0.5)
    preparer = Preparer(one, {})
    assert frames(preparer, one, tensor([[0.51, 1, 2]])) == frames(preparer, one, tensor([[0.49, 1, 2]]))
    (row,) = preparer.rows([tensor([[0.51, 1, 2]])])
    assert row.tensors[0].tolist() == [0.5, 1.0, 2.0]


def test_nan_is_refused_unless_allowed_and_then_is_one_pattern() -> None:
    """400 by default; where allowed, every NaN is the same bits for the key and for the model."""
    patterns = np.array([[0x7FC00000, 0x7FC00001, 0xFFC12345]], np.uint32).view(np.float32)
    with pytest.raises(BadInput, match=r"inputs\.x\.data"):
        Preparer(manifest(), {}).rows([InputTensor("x", "FP32", patterns)])
    with pytest.raises(BadInput, match="infinity"):
        Preparer(manifest(), {}).rows([InputTensor("x", "FP32", np.full((1, 3), np.inf, np.float32))])
    (row,) = Preparer(manifest(nonfinite=True), {}).rows([InputTensor("x", "FP32", patterns)])
    assert len(set(row.tensors[0].view(np.uint32).tolist())) == 1
    (row,) = Preparer(manifest(nonfinite=True), {}).rows(
        [InputTensor("x", "FP32", np.full((1, 3), -np.inf, np.float32))]
    )
    assert row.tensors[0].tolist() == [-np.inf] * 3


def test_another_datatype_is_refused_unless_cast_is_declared() -> None:
    """INT64 for FP32 is 400, or exactly cast; both ways share an entry then."""
    with pytest.raises(BadInput, match=r"inputs\.x\.datatype: is INT64"):
        prepared([1, 2, 3], "FP32", "INT64")
    one = manifest(cast=True)
    preparer = Preparer(one, {})
    assert frames(preparer, one, tensor([[1, 2, 3]], "INT64")) == frames(preparer, one, tensor([[1.0, 2.0, 3.0]]))
    assert frames(preparer, one, tensor([[1, 2, 3]], "FP64")) == frames(preparer, one, tensor([[1.0, 2.0, 3.0]]))


@pytest.mark.parametrize(
    ("wanted", "given", "data"),
    [
        ("UINT8", "INT64", [256]),
        ("UINT8", "INT8", [-1]),
        ("INT8", "UINT8", [128]),
        ("INT64", "UINT64", [2**63]),
        ("UINT64", "INT64", [-1]),
        ("INT32", "FP32", [0.5]),
        ("INT64", "FP64", [9.3e18]),
        ("FP16", "FP32", [70000.0]),
        ("FP32", "FP64", [1e300]),
        ("FP32", "BOOL", [True]),
    ],
)
def test_a_cast_that_would_change_the_value_is_refused(wanted: str, given: str, data: list[Any]) -> None:
    """Integers exactly, floats finitely, booleans never."""
    with pytest.raises(BadInput):
        prepared(data, wanted, given, cast=True)


@pytest.mark.parametrize(
    ("declared", "text", "wanted"),
    [
        ({"unicode": "NFC"}, "u\u0308", "ü"),
        ({"unicode": "NFKC"}, "ﬁ", "fi"),
        ({"case": "lower"}, "ÀB", "àb"),
        ({"case": "upper"}, "ß", "SS"),
        ({"case": "fold"}, "Straße", "strasse"),
        ({"space": "strip"}, "  a  b ", "a  b"),
        ({"space": "collapse"}, " a \t\n b ", "a b"),
        ({"unicode": "NFC", "case": "lower", "space": "collapse"}, " U\u0308  B ", "ü b"),
    ],
)
def test_declared_steps_on_text(declared: dict[str, Any], text: str, wanted: str) -> None:
    """What the model gets is the normalized text itself."""
    one = manifest("BYTES", ("rows",), **declared)
    (row,) = Preparer(one, {}).rows([tensor([text], "BYTES")])
    assert row.tensors[0].item() == wanted.encode()


def test_text_that_is_not_utf8_is_refused_where_text_is_needed() -> None:
    """Bytes pass where no step reads them as text, and are 400 where one does."""
    array = np.array([b"\xff"], object)
    assert (
        Preparer(manifest("BYTES", ("rows",)), {}).rows([InputTensor("x", "BYTES", array)])[0].tensors[0].item()
        == b"\xff"
    )
    with pytest.raises(BadInput, match="UTF-8"):
        Preparer(manifest("BYTES", ("rows",), case="lower"), {}).rows([InputTensor("x", "BYTES", array)])


def minilm(built: Path) -> tuple[Manifest, Preparer]:
    from foreseen import models

    one = find("minilm", (Path(models.__file__).parent,))
    record = read_record(built, "minilm")
    assets = {file.name: read_file(built, record.artifact, file) for file in record.artifact.assets}
    return one, Preparer(one, assets)


def ids(preparer: Preparer, text: str) -> list[int]:
    (row,) = preparer.rows([tensor([text], "BYTES", name="text")])
    return list(row.tensors[0].tolist())


def test_the_models_own_tokenizer_decides_what_is_one_question(built: Path) -> None:
    """NFC and NFD, upper and lower case, extra spaces: one entry where the token ids agree; nothing else decides."""
    _, preparer = minilm(built)
    plain = ids(preparer, "Über uns")
    assert plain == ids(preparer, unicodedata.normalize("NFD", "Über uns")) == ids(preparer, " über  UNS ")
    assert plain != ids(preparer, "Über uns!")
    assert ids(preparer, "a man eats")[0] == 101
    assert ids(preparer, "a man eats")[-1] == 102


def test_texts_that_were_seen_are_not_tokenized_again(built: Path) -> None:
    """Seen and new texts of one batch, in any order, give the ids that a fresh preparation gives; memory is bounded."""
    one = minilm(built)[1]
    texts = [f"text number {n}" for n in range(20)]
    for batch in (texts[:5], texts[3:9], texts[::-1], ["text number 1"] * 3, ["", "x" * 5000, "text number 4"]):
        asked = [tensor(batch, "BYTES", name="text")]
        rows = one.rows(asked)
        assert [row.tensors[0].tolist() for row in rows] == [
            row.tensors[0].tolist() for row in minilm(built)[1].rows(asked)
        ]
    memo = one._texts
    assert len(memo._ids) == 21  # the text of 5,000 characters is not kept
    assert memo.bytes == sum(memo._size(text, ids) for text, ids in memo._ids.items())
    memo.CAPACITY_BYTES = 2000  # type: ignore[misc]
    one.rows([tensor(["another one"], "BYTES", name="text")])
    assert memo.bytes <= 2000
    assert ("text", b"another one") in memo._ids
    with pytest.raises(ValueError, match="read-only"):
        memo._ids["text", b"another one"][0] = 7


def test_rows_of_numbers_are_made_when_they_are_asked_for() -> None:
    """One by one, in slices and all of them: the same rows, the same keys as of rows alone."""
    one = manifest("INT64", ("rows", 3))
    preparer = Preparer(one, {})
    rows = preparer.rows([tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], "INT64")])
    assert isinstance(rows, Columns)
    assert [row.tensors[0].tolist() for row in rows] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert [row.tensors[0].tolist() for row in rows[1:]] == [[4, 5, 6], [7, 8, 9]]
    assert rows[2].tensors[0].tolist() == rows[-1].tensors[0].tolist() == [7, 8, 9]
    framer = Framer(one.model)
    space = space_key(b"root", Space("public", "m", "d"))
    for parameters in (b"", b'{"a":1}'):
        alone = [key_of(space, framer.frame(row, parameters)) for row in rows]
        assert keys_of(space, framer.table(rows.arrays, parameters)) == alone
        assert keys_of_frames(space, framer.column_frames(rows.arrays, parameters)) == alone


def test_token_ids_are_cut_to_the_models_maximum_and_not_padded(built: Path) -> None:
    """256 ids at most, closed by [SEP]; a short text has its own length whatever its batch."""
    one, preparer = minilm(built)
    assert len(ids(preparer, "word " * 1000)) == 256
    rows = preparer.rows([tensor(["short", "a much longer text than the other one"], "BYTES", name="text")])
    assert [len(row.tensors[0]) for row in rows] == [3, 10]
    assert Framer(one.model).frame(rows[0]) == Framer(one.model).frame(
        preparer.rows([tensor(["short"], "BYTES", name="text")])[0]
    )


def test_a_tokenizer_that_is_not_in_the_artifact_is_the_operators_error(built: Path) -> None:
    """One line that says to rebuild."""
    with pytest.raises(SetupError, match="rebuild"):
        Preparer(minilm(built)[0], {})


def picture(kind: str, size: tuple[int, int] = (8, 6), **options: Any) -> bytes:
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def images(**spec: Any) -> tuple[Manifest, Preparer]:
    given = {"to": "pixels", "width": 4, "height": 4, "scale": 1 / 255} | spec
    shape = ["rows", 3, given["height"], given["width"]]
    if given.get("layout") == "NHWC":
        shape = ["rows", given["height"], given["width"], 3]
    one = msgspec.convert(
        {
            "name": "m",
            "client": {
                "inputs": [{"name": "image", "datatype": "BYTES", "shape": ["rows"], "image": given}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": ["rows"]}],
            },
            "model": {
                "inputs": [{"name": "pixels", "datatype": "FP32", "shape": shape}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": ["rows"]}],
            },
        },
        Manifest,
    )
    return one, Preparer(one, {})


def see(preparer: Preparer, *encoded: bytes) -> list[Array]:
    array = np.empty(len(encoded), object)
    array[:] = encoded
    return [row.tensors[0] for row in preparer.rows([InputTensor("image", "BYTES", array)])]


def test_the_same_pixels_from_png_and_bmp_share_an_entry() -> None:
    """Lossless encodings of one picture are one question; JPEG of it is another."""
    one, preparer = images()
    png, bmp, webp, jpeg = see(
        preparer, picture("PNG"), picture("BMP"), picture("WEBP", lossless=True), picture("JPEG", quality=30)
    )
    framer = Framer(one.model)
    assert framer.frame(Row((png,))) == framer.frame(Row((bmp,))) == framer.frame(Row((webp,)))
    assert framer.frame(Row((png,))) != framer.frame(Row((jpeg,)))
    assert (png.shape, png.dtype) == ((3, 4, 4), np.float32)
    assert 0 <= png.min() < png.max() <= 1


def test_layout_channels_mean_and_std() -> None:
    """NHWC keeps the channel last, BGR turns it round, mean and std apply by channel."""
    rgb = see(images(layout="NHWC", scale=1.0)[1], picture("PNG"))[0]
    assert np.array_equal(see(images(layout="NHWC", scale=1.0, channels="BGR")[1], picture("PNG"))[0], rgb[..., ::-1])
    assert np.array_equal(see(images(scale=1.0)[1], picture("PNG"))[0], rgb.transpose(2, 0, 1))
    shifted = see(images(layout="NHWC", scale=1.0, mean=(1, 2, 3), std=(2, 2, 4))[1], picture("PNG"))[0]
    assert np.allclose(shifted, (rgb - [1, 2, 3]) / [2, 2, 4])


def test_centre_crop() -> None:
    """Resized to a square first, then the centre is cut out of it."""
    whole = see(images(layout="NHWC", scale=1.0, width=6, height=6)[1], picture("PNG"))[0]
    cut = see(images(layout="NHWC", scale=1.0, crop_from=6)[1], picture("PNG"))[0]
    assert np.array_equal(cut, whole[1:5, 1:5])


@pytest.mark.parametrize("encoded", [b"", b"not a picture", picture("PNG")[:40], b"GIF89a" + bytes(40)])
def test_what_is_no_picture_is_refused(encoded: bytes) -> None:
    """Garbage, a cut file and formats that are not listed are 400 naming the input."""
    with pytest.raises(BadInput, match=r"inputs\.image"):
        see(images()[1], encoded)


def test_a_picture_that_says_it_is_huge_is_refused_before_it_is_decoded() -> None:
    """A decompression bomb is 413."""
    with pytest.raises(TooLarge, match="100×100"):
        see(images(max_pixels=9999)[1], picture("PNG", (100, 100)))


def padded_manifest() -> Manifest:
    model = {"name": "ids", "datatype": "INT64", "shape": ["rows", "tokens"]}
    outputs = [{"name": "y", "datatype": "FP32", "shape": ["rows"]}]
    return msgspec.convert(
        {
            "name": "m",
            "client": {"inputs": [{**model, "trim": "mask"}, {**model, "name": "mask"}], "outputs": outputs},
            "model": {"inputs": [model, {**model, "name": "mask", "role": "mask", "of": "ids"}], "outputs": outputs},
        },
        Manifest,
    )


def test_trim_ends_rows_where_their_mask_ends() -> None:
    """However far a client padded, the same ids are one question."""
    one = padded_manifest()
    preparer = Preparer(one, {})
    short = frames(preparer, one, tensor([[5, 6]], "INT64", name="ids"), tensor([[1, 1]], "INT64", name="mask"))
    long = frames(
        preparer, one, tensor([[5, 6, 0, 9]], "INT64", name="ids"), tensor([[1, 1, 0, 0]], "INT64", name="mask")
    )
    assert short == long


@pytest.mark.parametrize("mask", [[[1, 0, 1]], [[0, 1, 1]], [[0, 0, 0]], [[1, 2, 0]]])
def test_a_mask_with_a_hole_is_refused(mask: list[list[int]]) -> None:
    """1…1 0…0 or 400."""
    with pytest.raises(BadInput, match=r"inputs\.mask"):
        Preparer(padded_manifest(), {}).rows(
            [tensor([[5, 6, 7]], "INT64", name="ids"), tensor(mask, "INT64", name="mask")]
        )


def test_an_ignored_input_is_accepted_and_dropped() -> None:
    """Two values of it are one question."""
    x = {"name": "x", "datatype": "FP32", "shape": ["rows"]}
    one = msgspec.convert(
        {
            "name": "m",
            "client": {"inputs": [x, {**x, "name": "session", "ignore": True}], "outputs": [{**x, "name": "y"}]},
            "model": {"inputs": [x], "outputs": [{**x, "name": "y"}]},
        },
        Manifest,
    )
    preparer = Preparer(one, {})
    made = {
        frames(preparer, one, tensor([1.0]), InputTensor("session", "FP32", np.array([s], np.float32)))[0]
        for s in (1.0, 2.0)
    }
    assert len(made) == 1


def test_a_manifest_without_an_example_has_one_of_ones() -> None:
    """What `up` asks before it says ready is well-formed for a model that came without an example."""
    for datatype, data in (("FP32", [1] * 6), ("BYTES", ["1"] * 6), ("BOOL", [True] * 6)):
        one = manifest(datatype, ("rows", 2, "n", 3))
        (asked,) = parse_request(*example_request(one)).inputs
        wanted = tensor(data, datatype, (1, 2, 1, 3))
        assert asked.array.shape == wanted.array.shape
        assert asked.array.tolist() == wanted.array.tolist()
        assert len(Preparer(one, {}).rows([asked])) == 1


def test_a_made_up_picture_is_one_that_the_model_takes() -> None:
    """An input of encoded pictures gets a PNG, not the text "1": readiness does not depend on an invented input."""
    one = find("nsfw", PACKAGED)
    (row,) = Preparer(one, {}).rows(parse_request(*example_request(one)).inputs)
    assert row.tensors[0].shape == (224, 224, 3)


def test_rows_that_belong_together_are_one_row() -> None:
    """`rows = "together"`: one entry per request, its tensor with the batch axis."""
    rows = Preparer(manifest(rows="together"), {}).rows([tensor([[1, 2, 3], [4, 5, 6]])])
    assert [row.tensors[0].shape for row in rows] == [(2, 3)]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "inputs.x: missing"),
        ([tensor([[1, 2, 3]]), tensor([[1, 2, 3]], name="z")], "inputs.z: there is no such input"),
        ([tensor([[1, 2]])], "inputs.x.shape: is [1, 2], must be [-1, 3]"),
        ([tensor([1.0])], "inputs.x.shape: is [1], must be [-1, 3]"),
    ],
)
def test_what_does_not_fit_the_signature_is_refused_by_name(inputs: list[InputTensor], says: str) -> None:
    """400 naming the input and what it must be."""
    with pytest.raises(BadInput) as error:
        Preparer(manifest(), {}).rows(inputs)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('name = "a/b"', "may hold letters"),
        ('version = "one"', "not an integer"),
        ("unknown = 1", "unknown"),
        ('rows = "some"', "rows"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_one_line(tmp_path: Path, change: str, says: str) -> None:
    """SetupError with the file and the field."""
    tensor_of = '[[model.{}]]\nname="x"\ndatatype="FP32"\nshape=["rows"]\n'
    text = tensor_of.format("inputs") + tensor_of.format("outputs")
    head = change if change.startswith("name") else f'name = "m"\n{change}'
    path = tmp_path / "model.toml"
    path.write_text(f"{head}\n{text}")
    with pytest.raises(SetupError) as error:
        load(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_of_numbers_is_prepared_as_its_rows_are() -> None:
    """By the column or by the row: the same normalization, the same values."""
    one = Preparer(manifest(cast=True, zero=True, clip=(0.0, 4.0), decimals=1), {})
    asked = [tensor([[-0.0, 1.26, 9.0], [1.0, 2.0, 3.0]])]
    assert one.columnar
    (column,) = one.table(asked)
    assert [row.tensors[0].tobytes() for row in one.rows(asked)] == [line.tobytes() for line in column]
    assert not Preparer(manifest("FP32", ("rows", "n")), {}).columnar
    assert not Preparer(manifest("BYTES", ("rows",)), {}).columnar
    assert not Preparer(manifest(rows="together"), {}).columnar


def png(values: Array) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def test_grey_of_16_bits_is_scaled_to_8() -> None:
    """Golden pixels: 65535 is white, 32896 is 128 as in a file of 8 bits; nothing above 255 is clipped."""
    _, preparer = images(width=4, height=1, scale=1.0, resize="nearest")
    wide = np.array([[0, 257, 32896, 65535]], np.uint16)
    (seen,) = see(preparer, png(wide))
    assert seen[0].tolist() == [[0.0, 1.0, 128.0, 255.0]]
    narrow = np.array([[0, 1, 128, 255]], np.uint8)
    assert see(preparer, png(narrow))[0].tobytes() == seen.tobytes()


def test_orientation_is_applied_where_it_is_declared() -> None:
    """EXIF orientation 6: the file's first row is the picture's last column. Golden pixels."""
    values = np.array([[10, 20], [30, 40]], np.uint8)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Pillow.fromarray(values).save(buffer, "PNG", exif=exif)
    for declared, wanted in ((False, [[10.0, 20.0], [30.0, 40.0]]), (True, [[30.0, 10.0], [40.0, 20.0]])):
        _, preparer = images(width=2, height=2, scale=1.0, resize="nearest", exif=declared)
        assert see(preparer, buffer.getvalue())[0][0].tolist() == wanted


def test_a_later_field_at_its_default_changes_no_digest() -> None:
    """Golden: models that do not use `exif` keep the digest, hence the entries, that they had before there was one."""
    nsfw = find("nsfw", PACKAGED)
    assert preparation_digest(nsfw, ()) == "9aeef237492c12a2011f5c541335a07933bebc51c7da5ea4a0f71afc1df1735a"
    (image,) = (i for i in nsfw.seen.inputs if i.image is not None)
    assert image.image is not None
    turned = replace(image, image=replace(image.image, exif=True))
    assert preparation_digest(replace(nsfw, client=replace(nsfw.seen, inputs=(turned,))), ()) != preparation_digest(
        nsfw, ()
    )
