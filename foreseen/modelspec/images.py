"""Encoded image bytes → pixels as the model sees them: decoded, resized, laid out, scaled.

The same pixels from PNG and from BMP give the same array and so share an entry. Grey values of 16 bits are scaled to 8,
as Pillow itself does with 16-bit colour. EXIF orientation is applied where the manifest says so, and alpha is dropped,
as the usual training pipelines do. The only file that imports Pillow.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from foreseen.errors import BadInput, TooLarge
from foreseen.modelspec.manifest import Image
from foreseen.protocol.datatypes import DATATYPES
from foreseen.types import Array

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_RESAMPLING = {
    "bilinear": Pillow.Resampling.BILINEAR,
    "bicubic": Pillow.Resampling.BICUBIC,
    "nearest": Pillow.Resampling.NEAREST,
    "lanczos": Pillow.Resampling.LANCZOS,
}
Pillow.MAX_IMAGE_PIXELS = None  # `pixels` compares the stated size with the manifest's own limit, before it decodes


def pixels(encoded: bytes, spec: Image, datatype: str, field: str) -> Array:
    """One picture as `[C, H, W]` or `[H, W, C]`. Raises BadInput, or TooLarge for a decompression bomb."""
    try:
        opened = Pillow.open(io.BytesIO(encoded), formats=FORMATS)
        if opened.width * opened.height > spec.max_pixels:
            raise TooLarge(f"{field}: a picture of {opened.width}×{opened.height} is above {spec.max_pixels} pixels")
        picture = _eight_bit(ImageOps.exif_transpose(opened) if spec.exif else opened)
        picture = picture.convert("L" if spec.channels == "L" else "RGB")
    except TooLarge:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise whatever their format's parser does
        raise BadInput(f"{field}: is not a readable {', '.join(FORMATS)} picture ({type(error).__name__})") from None
    array = np.asarray(_sized(picture, spec))
    array = array[..., None] if array.ndim == 2 else array
    if spec.channels == "BGR":
        array = array[..., ::-1]
    scaled: Array = array.astype(np.float32) * np.float32(spec.scale)
    if spec.mean:
        scaled = scaled - np.asarray(spec.mean, np.float32)
    if spec.std:
        scaled = scaled / np.asarray(spec.std, np.float32)
    laid_out = scaled.transpose(2, 0, 1) if spec.layout == "NCHW" else scaled
    return np.ascontiguousarray(laid_out, DATATYPES[datatype].dtype)


def _eight_bit(picture: Pillow.Image) -> Pillow.Image:
    """Grey of 16 bits as grey of 8, 65535 becoming 255: `convert` would clip everything above 255 to white
    (python-pillow/Pillow#3011). Other pictures as they are."""
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.uint32)
    return Pillow.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _sized(picture: Pillow.Image, spec: Image) -> Pillow.Image:
    how = _RESAMPLING[spec.resize]
    if spec.crop_from is None:
        return picture.resize((spec.width, spec.height), how)
    whole = picture.resize((spec.crop_from, spec.crop_from), how)
    left, top = (spec.crop_from - spec.width) // 2, (spec.crop_from - spec.height) // 2
    return whole.crop((left, top, left + spec.width, top + spec.height))
