"""The manifest: one decision per image, and why."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config import DedupConfig
from tasks import storage
from tasks.errors import ArtifactError
from tasks.manifests import manifest_digest
from tasks.references import Clusters, Collection, Inventory, Keepers, Neighbors
from tasks.schemas import CLUSTERS, IMAGES, INVENTORY, KEEPERS, MANIFEST, MATCHES
from tasks.stage09_write_manifest import (
    manifest_table,
    reasons_to_remove,
    reasons_to_skip,
    with_library,
    write_manifest,
)
from tasks.verdicts import Verdicts
from tasks.weights import WEIGHTS_DIGEST

NOT_EMBEDDED = "not embedded: its shard failed"


def image(name: str, sha256: str | None = None, error: str | None = None) -> dict[str, Any]:
    return {
        "image_id": f"id-{name}",
        "url": f"s3://bucket/{name}.jpg",
        "size_bytes": len(name),
        "etag": f"etag-{name}",
        "camera": "",
        "captured_at": datetime(2026, 1, 1, tzinfo=UTC),
        "sha256": sha256,
        "error": error,
    }


def images_of(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), IMAGES)


def clusters_of(labels: dict[str, int]) -> pa.Table:
    rows = [
        {"image_id": f"id-{name}", "cluster_id": label, "is_core": label >= 0}
        for name, label in labels.items()
    ]
    return pa.Table.from_pylist(rows, CLUSTERS)


def keepers_of(**keepers: tuple[str, float]) -> pa.Table:
    rows = [
        {"image_id": f"id-{name}", "keeper_id": f"id-{keeper}", "distance": distance}
        for name, (keeper, distance) in keepers.items()
    ]
    return pa.Table.from_pylist(rows, KEEPERS)


IMAGES_OF_THE_NIGHT = images_of(
    image("broken", sha256="00", error="empty file"),
    image("copy", sha256="aa"),
    image("failed", error=NOT_EMBEDDED),
    image("far", sha256="bb"),
    image("gone", error="file is gone"),
    image("keeper", sha256="aa"),
    image("near", sha256="cc"),
    image("unique", sha256="dd"),
)
# In the order of items, which is another one.
CLUSTERS_OF_THE_NIGHT = clusters_of({"unique": -1, "near": 3, "keeper": 3, "far": 3, "copy": 3})
KEEPERS_OF_THE_NIGHT = keepers_of(
    near=("keeper", 0.03125), far=("keeper", 0.125), copy=("keeper", 0.0)
)


def test_every_image_gets_one_decision() -> None:
    manifest = manifest_table(
        IMAGES_OF_THE_NIGHT, CLUSTERS_OF_THE_NIGHT, KEEPERS_OF_THE_NIGHT, eps=0.05
    )

    assert manifest.schema.equals(MANIFEST)
    keeper = "s3://bucket/keeper.jpg"
    lines = [
        # url, bytes, etag, sha256, cluster, action, keeper, distance, reason
        ("broken", 6, "00", -1, "skip", None, None, "unreadable: empty file"),
        ("copy", 4, "aa", 3, "remove", keeper, 0.0, "exact copy"),
        ("failed", 6, None, -1, "skip", None, None, "not embedded: its shard failed"),
        ("far", 3, "bb", 3, "remove", keeper, 0.125, "same cluster"),
        ("gone", 4, None, -1, "skip", None, None, "unreadable: file is gone"),
        ("keeper", 6, "aa", 3, "keep", None, None, "keeper"),
        ("near", 4, "cc", 3, "remove", keeper, 0.03125, "within eps"),
        ("unique", 6, "dd", -1, "keep", None, None, "unique"),
    ]
    assert [tuple(row.values()) for row in manifest.to_pylist()] == [
        (f"s3://bucket/{name}.jpg", size, f"etag-{name}", *rest) for name, size, *rest in lines
    ]


def test_manifest_is_sorted_by_url_as_the_images_are() -> None:
    manifest = manifest_table(
        IMAGES_OF_THE_NIGHT, CLUSTERS_OF_THE_NIGHT, KEEPERS_OF_THE_NIGHT, eps=0.05
    )
    urls = manifest["url"].to_pylist()
    assert urls == sorted(urls)


def test_order_of_clusters_and_keepers_does_not_matter() -> None:
    usual = manifest_table(
        IMAGES_OF_THE_NIGHT, CLUSTERS_OF_THE_NIGHT, KEEPERS_OF_THE_NIGHT, eps=0.05
    )
    backwards = manifest_table(
        IMAGES_OF_THE_NIGHT,
        CLUSTERS_OF_THE_NIGHT[::-1],
        KEEPERS_OF_THE_NIGHT[::-1],
        eps=0.05,
    )
    assert usual == backwards


def test_keepers_of_one_cluster_may_be_several() -> None:
    manifest = manifest_table(
        images_of(*(image(name, sha256=name) for name in "abcd")),
        clusters_of(dict.fromkeys("abcd", 0)),
        keepers_of(a=("b", 0.01), d=("c", 0.02)),
        eps=0.05,
    )
    assert manifest["reason"].to_pylist() == ["within eps", "keeper", "keeper", "within eps"]
    assert manifest["keeper_url"].to_pylist() == [
        "s3://bucket/b.jpg",
        None,
        None,
        "s3://bucket/c.jpg",
    ]


def test_reason_says_where_a_feature_was_that_of_another_frame() -> None:
    images = images_of(
        image("a", sha256="aa"),
        image("b", sha256="bb") | {"stands_on": "id-a"},
        image("c", sha256="aa") | {"stands_on": "id-a"},
        image("d", sha256="dd"),
        image("e", sha256="ee"),
    )
    labels = {"a": 0, "b": 0, "c": 0, "d": 0, "e": 0}
    keepers = keepers_of(b=("a", 0.0), c=("a", 0.0), d=("a", 0.01))
    table = manifest_table(images, clusters_of(labels), keepers, eps=0.05)
    assert table["reason"].to_pylist() == [
        "keeper",
        "within eps, gated",
        "exact copy",
        "within eps",
        "keeper",
    ]
    twin_stands_on_another = keepers_of(d=("b", 0.01), e=("b", 0.2))
    table = manifest_table(images, clusters_of(labels), twin_stands_on_another, eps=0.05)
    assert table["reason"].to_pylist()[3:] == ["within eps, gated", "same cluster"]


def test_only_image_of_its_cluster_is_a_keeper() -> None:
    table = manifest_table(
        images_of(image("a", sha256="aa")), clusters_of({"a": 0}), keepers_of(), eps=0.05
    )
    assert table.select(["cluster_id", "action", "reason"]).to_pylist() == [
        {"cluster_id": 0, "action": "keep", "reason": "keeper"}
    ]


def test_empty_night_has_an_empty_manifest() -> None:
    table = manifest_table(images_of(), clusters_of({}), keepers_of(), eps=0.05)
    assert (table.num_rows, table.schema.equals(MANIFEST)) == (0, True)


def test_unreadable_image_is_skipped_even_if_a_keeper_is_named_for_it() -> None:
    table = manifest_table(
        images_of(image("a", error="empty file"), image("b", sha256="bb")),
        clusters_of({"b": 0}),
        keepers_of(a=("b", 0.01)),
        eps=0.05,
    )
    columns = ["action", "keeper_url", "distance"]
    assert [list(row.values()) for row in table.select(columns).to_pylist()] == [
        ["skip", None, None],
        ["keep", None, None],
    ]


def test_keeper_that_is_no_image_of_the_run_is_refused() -> None:
    with pytest.raises(ArtifactError, match="1 keepers are no images of the run"):
        manifest_table(
            images_of(image("a", sha256="aa"), image("b", sha256="bb")),
            clusters_of({"a": 0, "b": 0}),
            keepers_of(a=("elsewhere", 0.01)),
            eps=0.05,
        )


def test_reasons_to_remove() -> None:
    above = float(np.float32(0.05))  # the float32 is a little above 0.05
    below = float(np.nextafter(np.float32(0.05), np.float32(0)))
    lines = [
        # copy, gated, distance, reason
        (True, False, 0.0, "exact copy"),
        (True, True, 0.3, "exact copy"),
        (False, False, 0.0, "within eps"),
        (False, False, below, "within eps"),
        (False, True, below, "within eps, gated"),
        (False, False, above, "same cluster"),
        (False, True, 0.3, "same cluster"),
    ]
    is_copy, is_gated, distances, reasons = (list(column) for column in zip(*lines, strict=True))
    found = reasons_to_remove(
        pa.chunked_array([pa.array(is_copy)]),
        pa.chunked_array([pa.array(is_gated)]),
        pa.chunked_array([pa.array(distances, pa.float32())]),
        eps=0.05,
    )
    assert found.to_pylist() == reasons


def test_eps_itself_is_within_eps() -> None:
    distances = pa.chunked_array([pa.array([0.125], pa.float32())])
    no = pa.chunked_array([pa.array([False])])
    assert reasons_to_remove(no, no, distances, eps=0.125).to_pylist() == ["within eps"]


def test_each_image_is_a_twin_by_its_own_eps() -> None:
    columns = [pa.chunked_array([[False, False]])] * 2
    distances = pa.chunked_array([[0.25], [0.25]], pa.float32())

    reasons = reasons_to_remove(*columns, distances, eps=np.array([0.25, 0.2]))

    assert reasons.to_pylist() == ["within eps", "same cluster"]


def test_reasons_to_skip_tell_a_bad_image_from_a_failed_shard() -> None:
    errors = pa.chunked_array([pa.array(["empty file", NOT_EMBEDDED])])
    assert reasons_to_skip(errors).to_pylist() == ["unreadable: empty file", NOT_EMBEDDED]


class TestWriteManifest:
    @pytest.fixture
    def metadata(self, place: str) -> dict[str, str]:
        """What the manifest of a partial night says of itself."""
        return self.write(place, num_missing=1, neighbors=Neighbors(recall=0.9995, depth=8))

    def write(self, place: str, *, num_missing: int, neighbors: Neighbors) -> dict[str, str]:
        place = storage.absolute_url(place)
        inventory, images, clusters, keepers = (
            f"{place}/{name}.parquet" for name in ("inventory", "images", "clusters", "keepers")
        )
        listing = {"source_url": "s3://bucket", "num_ignored": '{"hidden": 2}'}
        storage.publish_table(inventory, INVENTORY.empty_table().replace_schema_metadata(listing))
        storage.publish_table(images, IMAGES_OF_THE_NIGHT)
        storage.publish_table(clusters, CLUSTERS_OF_THE_NIGHT)
        storage.publish_table(keepers, KEEPERS_OF_THE_NIGHT)
        manifest = write_manifest.fn(
            Inventory(inventory, "night-1", 8),
            Collection("run-1", f"{place}/runs/run-1", images, "", 8, 5, 5, num_missing),
            neighbors,
            Clusters(clusters, 1),
            Keepers(keepers, 3),
            DedupConfig(source_url="s3://bucket", workspace_url=place),
        )
        assert manifest.url == f"{place}/runs/run-1/manifest.parquet"
        assert manifest.run_url == f"{place}/runs/run-1"
        table = storage.read_table(manifest.url, MANIFEST)
        assert table == manifest_table(
            IMAGES_OF_THE_NIGHT, CLUSTERS_OF_THE_NIGHT, KEEPERS_OF_THE_NIGHT, eps=0.05
        )
        metadata = storage.read_metadata(manifest.url)
        assert metadata["digest"] == manifest_digest(table, metadata)
        return metadata

    def test_says_how_it_was_made(self, metadata: dict[str, str]) -> None:
        config = DedupConfig(source_url="s3://bucket", workspace_url="/work")
        assert json.loads(metadata.pop("config")) == config.deciding_settings()
        assert json.loads(metadata.pop("counts"))["num_remove"] == 3
        assert re.fullmatch("[0-9a-f]{64}", metadata.pop("digest"))
        assert metadata == {
            "run_id": "run-1",
            "source_url": "s3://bucket",
            "eps": "0.05",
            "weights_digest": WEIGHTS_DIGEST,
            "is_complete": "false",
            "recall": "0.9995",
            "is_search_exact": "false",
            "num_ignored": '{"hidden": 2}',
            "schema_version": "3",
        }

    def test_digest_covers_what_it_says_of_itself(self, tmp_path: Path) -> None:
        exact = Neighbors(recall=1.0, depth=0)
        digests = [
            self.write(str(tmp_path / name), num_missing=num_missing, neighbors=exact)["digest"]
            for name, num_missing in (("a", 0), ("b", 0), ("c", 1))
        ]
        assert digests[0] == digests[1] != digests[2]

    def test_says_when_the_night_was_complete_and_the_search_exact(self, tmp_path: Path) -> None:
        neighbors = Neighbors(recall=1.0, depth=0)
        metadata = self.write(str(tmp_path), num_missing=0, neighbors=neighbors)
        assert (metadata["is_complete"], metadata["is_search_exact"]) == ("true", "true")


def stays(content: str, *urls: str, is_every: bool = False) -> dict[str, Any]:
    said = {"because": "not a duplicate", "is_every": is_every, "urls": urls}
    return {f"{content:0>64}": said}


OLD = "s3://bucket/old.jpg"


class TestLibrary:
    """Images that go for what earlier nights kept, or were kept by them."""

    def test_keeper_of_an_earlier_night_has_a_row_and_a_cluster(self) -> None:
        images = images_of(
            image("a", sha256="aa"), image("b", sha256="bb"), image("c", sha256="cc")
        )
        alone = manifest_table(
            images, clusters_of({"a": -1, "b": 0, "c": 0}), keepers_of(c=("b", 0.03125)), eps=0.05
        )

        manifest = decided(alone, images, matches_of(a=("old", "0d", 0.015625)))

        assert manifest.schema.equals(MANIFEST)
        b, old = "s3://bucket/b.jpg", "s3://bucket/old.jpg"
        lines = [
            ("a", 1, "etag-a", "aa", 1, "remove", old, 0.015625, "within eps"),
            ("b", 1, "etag-b", "bb", 0, "keep", None, None, "keeper"),
            ("c", 1, "etag-c", "cc", 0, "remove", b, 0.03125, "within eps"),
            ("old", 3, "etag-old", "0d", 1, "library", None, None, "kept by an earlier night"),
        ]
        assert [tuple(row.values()) for row in manifest.to_pylist()] == [
            (f"s3://bucket/{name}.jpg", *rest) for name, *rest in lines
        ]

    def test_keeper_that_is_an_image_of_the_night_has_one_row(self) -> None:
        images = images_of(image("a", sha256="aa"), image("b", sha256="aa"))
        alone = manifest_table(images, clusters_of({}), keepers_of(), eps=0.05)

        manifest = decided(alone, images, matches_of(a=("a", "aa", None), b=("a", "aa", 0.0)))

        chosen = ("cluster_id", "action", "keeper_url", "reason")
        assert [tuple(row[name] for name in chosen) for row in manifest.to_pylist()] == [
            (0, "keep", None, "kept by an earlier night"),
            (0, "remove", "s3://bucket/a.jpg", "exact copy"),
        ]

    def test_gated_image_says_so(self) -> None:
        images = images_of(image("a", sha256="aa") | {"stands_on": "id-z"})
        alone = manifest_table(images, clusters_of({}), keepers_of(), eps=0.05)

        manifest = decided(alone, images, matches_of(a=("old", "0d", 0.03125)))

        assert manifest["reason"].to_pylist() == ["within eps, gated", "kept by an earlier night"]

    def test_without_matches_nothing_changes(self) -> None:
        images = images_of(image("a", sha256="aa"))
        alone = manifest_table(images, clusters_of({}), keepers_of(), eps=0.05)

        assert decided(alone, images, matches_of()) is alone

    @pytest.mark.parametrize(
        ("scenes", "decision"),
        [
            ((), ("keep", None, "unique")),
            (((f"{'aa':0>64}", f"{'0d':0>64}"),), ("remove", OLD, "same scene, reviewed")),
            (((f"{'aa':0>64}", f"{'cc':0>64}"),), ("keep", None, "unique")),
        ],
    )
    def test_beyond_eps_goes_only_what_a_person_calls_one_scene(
        self, scenes: tuple[tuple[str, ...], ...], decision: tuple[str, str | None, str]
    ) -> None:
        images = images_of(image("a", sha256=f"{'aa':0>64}"))
        alone = manifest_table(images, clusters_of({}), keepers_of(), eps=0.05)

        manifest = decided(
            *(alone, images, matches_of(a=("old", f"{'0d':0>64}", 0.5))), Verdicts(scenes=scenes)
        )

        row = manifest.to_pylist()[0]
        assert (row["action"], row["keeper_url"], row["reason"]) == decision

    @pytest.mark.parametrize(
        ("said", "actions"),
        [
            ({}, ["remove", "remove", "library"]),
            ({"stays": stays("aa")}, ["keep", "remove", "library"]),
            # An exact copy of the keeper goes all the same, unless a person meant just this image.
            ({"stays": stays("0d")}, ["remove", "remove", "library"]),
            ({"stays": stays("0d", "s3://bucket/b.jpg")}, ["remove", "keep", "library"]),
            ({"stays": stays("aa") | stays("0d", is_every=True)}, ["keep", "keep"]),
            ({"apart": ((f"{'0d':0>64}", f"{'aa':0>64}"),)}, ["keep", "remove", "library"]),
        ],
    )
    def test_whom_a_person_wants_to_stay_does(
        self, said: dict[str, Any], actions: list[str]
    ) -> None:
        images = images_of(image("a", sha256=f"{'aa':0>64}"), image("b", sha256=f"{'0d':0>64}"))
        alone = manifest_table(images, clusters_of({}), keepers_of(), eps=0.05)
        old = f"{'0d':0>64}"
        matches = matches_of(a=("old", old, 0.03125), b=("old", old, 0.0))

        manifest = decided(alone, images, matches, Verdicts.model_validate(said))

        assert manifest["action"].to_pylist() == actions
        kept = manifest.filter(pc.equal(manifest["action"], "keep"))
        assert set(kept["reason"].to_pylist()) <= {"reviewed: not a duplicate"}
        assert set(kept["cluster_id"].to_pylist()) <= {-1}


def decided(
    alone: pa.Table, images: pa.Table, matches: pa.Table, verdicts: Verdicts | None = None
) -> pa.Table:
    return with_library(alone, images, matches, eps=0.05, verdicts=verdicts or Verdicts())


def matches_of(**matches: tuple[str, str, float | None]) -> pa.Table:
    rows = [
        {
            "image_id": f"id-{name}",
            "keeper_image_id": f"id-{keeper}",
            "keeper_url": f"s3://bucket/{keeper}.jpg",
            "keeper_size_bytes": len(keeper),
            "keeper_etag": f"etag-{keeper}",
            "keeper_sha256": sha256,
            "distance": distance,
        }
        for name, (keeper, sha256, distance) in matches.items()
    ]
    return pa.Table.from_pylist(rows, MATCHES)
