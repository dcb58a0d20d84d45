"""The benchmark of embedding: what it counts, and that our side of it really embeds."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.embedding import Way, as_text, describe, distinct_images, measure, shards_embedder
from config import DedupConfig, FeatureSettings
from tasks import stage03_embed_shard, storage
from tasks.feature_store import store_url


def test_each_content_counts_once_and_other_files_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, content in {"b.jpg": b"1", "a.JPG": b"2", "sub/c.png": b"1", "d.txt": b"3"}.items():
        (tmp_path / name).write_bytes(content)
    assert distinct_images(tmp_path, 9) == [tmp_path / "a.JPG", tmp_path / "b.jpg"]
    assert distinct_images(tmp_path, 1) == [tmp_path / "a.JPG"]


def test_ways_take_turns_and_the_first_round_warms_up() -> None:
    turns: list[str] = []
    ways = {name: Way(lambda name=name: turns.append(name), 10) for name in ("a", "b")}
    rates = measure(ways, rounds=2)
    assert "".join(turns) == "ababab"
    assert {name: len(found) for name, found in rates.items()} == {"a": 2, "b": 2}


def test_ratios_are_taken_within_each_round() -> None:
    rates = {"a": [10.0, 100.0, 10.0], "b": [9.0, 50.0, 10.0], "c": [3.0, 50.0, 2.0]}
    result = describe(rates, FeatureSettings(dtype="float32"), 7)
    assert result["images_per_second"] == {"a": 10.0, "b": 10.0, "c": 3.0}
    assert result["ratios"] == {"b/a": 0.9, "b/c": 3.0}
    assert as_text(result).splitlines() == [
        "tensorflow float32 224: 7 images, median of 3 rounds",
        "  a  bare forward pass              10.0 images/s   b/a 0.90",
        "  b  this project, end to end       10.0 images/s",
        "  c  the usual loop, float32         3.0 images/s   b/c 3.00",
    ]


def test_our_side_embeds_everything_in_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for red in range(5):
        paths.append(tmp_path / f"{red}.png")
        Image.new("RGB", (32, 32), (red, 0, 0)).save(paths[-1])
    passes: list[int] = []
    forward = stage03_embed_shard.vgg16_maps

    def counted(pixels: object, **options: object) -> object:
        passes.append(len(pixels))
        return forward(pixels, **options)

    monkeypatch.setattr(stage03_embed_shard, "vgg16_maps", counted)
    config = DedupConfig(
        source_url=str(tmp_path),
        workspace_url=str(tmp_path / "work"),
        features=FeatureSettings(image_size=32, dtype="float32"),
        execution={"images_per_shard": 2, "workers": 1, "batch_size": 2},
    )
    embed = shards_embedder(paths, config)

    embed()
    embed()

    assert passes == [2, 2, 1] * 2
    assert len(storage.list_parquet(store_url(config.workspace_url, config.features))) == 3
