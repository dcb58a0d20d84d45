"""Large JPEGs are decoded at a reduced scale; what that does to a feature is bounded."""

import io
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from config import DedupConfig, FeatureSettings
from tasks.distances import cosine_distances
from tasks.images import decode_image
from tasks.stage03_embed_shard import embed_pixels

CONFIG = DedupConfig(
    source_url="/unused",
    workspace_url="/unused",
    features=FeatureSettings(dtype="float32"),
)


@pytest.mark.parametrize("photo", ["astronaut.png", "coffee.png", "retina.jpg"])
def test_reduced_decoding_moves_a_feature_by_no_more_than_documented(photo: str) -> None:
    image = Image.open(Path(skimage.__file__).parent / "data" / photo).convert("RGB")
    jpeg, png = io.BytesIO(), io.BytesIO()
    image.resize((3000, 2000), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
    Image.open(jpeg).save(png, "PNG", compress_level=1)

    reduced, full = (
        decode_image(file.getvalue(), image_size=224, max_pixels=10_000_000).pixels
        for file in (jpeg, png)
    )

    assert not np.array_equal(reduced, full)  # else nothing was reduced
    features = embed_pixels(np.stack([reduced, full]), CONFIG)
    assert cosine_distances(features[:1], features[1:])[0] <= 0.0005
