"""The flow, from a folder of photographs to whole manifests."""

import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from config import FeatureSettings, load_config
from flows.dedup import dedup
from tasks import stage03_embed_shard, storage
from tasks.errors import NightIncompleteError, SourceError
from tasks.feature_store import feature_metadata, store_url
from tasks.memo import forget_features
from tasks.schemas import FEATURES
from tasks.stage01_list_images import image_id
from tasks.summary import Summary
from tasks.vgg16 import normalize_features
from tests.conftest import Night
from tests.flows.flaky import FlakyFileSystem
from tests.told_events import assert_told

pytestmark = pytest.mark.usefixtures("prefect_server")

FOREVER = 1_000_000


def run(source: object, workspace: object, /, **settings: Any) -> Summary:
    """Run the flow at a quarter of the usual work per image."""
    features = {"image_size": 112, "dtype": "float32"} | settings.pop("features", {})
    execution = {"retry_delay_seconds": 0, "max_retries": 1} | settings.pop("execution", {})
    said = {"source_url": str(source), "workspace_url": str(workspace), **settings}
    return dedup(load_config(None, said | {"features": features, "execution": execution}))


def manifest_of(summary: Summary) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(
        io.BytesIO(storage.read_bytes(summary.manifest_url))
    ).to_pylist()
    return rows


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    """Every test embeds for itself, whatever this process has seen before."""
    forget_features()


@pytest.fixture(scope="module")
def done(
    night: Night, tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> tuple[Summary, Path]:
    """One undisturbed run and its workspace."""
    workspace = tmp_path_factory.mktemp("done")
    return run(night.folder, workspace), workspace


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every forward pass since the test began."""
    passes: list[int] = []
    forward = stage03_embed_shard.vgg16_maps

    def counted(pixels: Any, **options: Any) -> Any:
        passes.append(len(pixels))
        return forward(pixels, **options)

    monkeypatch.setattr(stage03_embed_shard, "vgg16_maps", counted)
    return passes


def test_manifest_of_the_night_is_the_expected_one(
    night: Night, done: tuple[Summary, Path]
) -> None:
    summary, _ = done
    expected = (Path(__file__).parent / "expected_manifest.csv").read_text()
    source_url = storage.absolute_url(str(night.folder))

    def relative(url: str | None) -> str:
        return (url or "").removeprefix(source_url + "/")

    lines = ["name,cluster_id,action,keeper,reason"]
    for row in manifest_of(summary):
        values = [row["cluster_id"], row["action"], relative(row["keeper_url"]), row["reason"]]
        lines.append(",".join([relative(row["url"]), *map(str, values)]))
    assert "\n".join(lines) + "\n" == expected


def test_summary_counts_the_night(done: tuple[Summary, Path]) -> None:
    summary, _ = done
    counts = summary.model_dump(
        include={
            *("num_images", "num_unreadable", "num_exact_copies", "num_clusters", "num_noise"),
            *("num_keep", "num_remove", "num_orphans", "recall", "is_complete", "num_embedded"),
            *("cluster_sizes", "num_ignored", "is_search_exact"),
        }
    )
    assert counts == {
        "num_images": 43,
        "num_unreadable": 1,
        "num_exact_copies": 3,
        "num_clusters": 7,
        "cluster_sizes": {5: 4, 6: 3},
        "num_noise": 4,
        "num_keep": 11,
        "num_remove": 31,
        "num_orphans": 0,
        "recall": 1.0,
        "is_search_exact": True,
        "is_complete": True,
        "num_embedded": 42,
        "num_ignored": {},
    }
    assert summary.bytes_saved > 0
    assert list(summary.seconds) == [
        *(
            "list",
            "embed",
            "collect",
            "library",
            "neighbors",
            "cluster",
            "sweep",
            "manifest",
            "index",
        )
    ]


@pytest.mark.parametrize(
    ("images_per_shard", "workers", "batch_size"), [(7, 1, 8), (64, 4, 3), (1000, 4, 8)]
)
def test_manifest_has_the_same_bytes_however_the_work_is_cut(
    night: Night,
    done: tuple[Summary, Path],
    tmp_path: Path,
    images_per_shard: int,
    workers: int,
    batch_size: int,
) -> None:
    execution = {
        "images_per_shard": images_per_shard,
        "workers": workers,
        "batch_size": batch_size,
        "items_per_search": 5,
    }
    summary = run(night.folder, tmp_path, execution=execution)
    assert storage.read_bytes(summary.manifest_url) == storage.read_bytes(done[0].manifest_url)


@pytest.mark.parametrize("task_runner", ["processes", "dask", "ray"])
def test_manifest_has_the_same_bytes_on_other_runners(
    night: Night, done: tuple[Summary, Path], tmp_path: Path, task_runner: str
) -> None:
    execution = {"task_runner": task_runner, "workers": 2, "images_per_shard": 22}
    summary = run(night.folder, tmp_path, execution=execution)
    assert storage.read_bytes(summary.manifest_url) == storage.read_bytes(done[0].manifest_url)


def test_second_run_embeds_nothing_and_changes_nothing(
    night: Night, done: tuple[Summary, Path], embedded: list[int]
) -> None:
    before = storage.read_bytes(done[0].manifest_url)
    summary = run(night.folder, done[1], execution={"images_per_shard": 5})
    assert (embedded, summary.num_embedded) == ([], 0)
    assert storage.read_bytes(summary.manifest_url) == before


def test_other_eps_decides_anew_beside_the_first_run(
    night: Night, done: tuple[Summary, Path], embedded: list[int]
) -> None:
    strict = run(night.folder, done[1], neighbors={"eps": 0.0}, rebuild=True)
    assert embedded == []
    assert strict.run_id != done[0].run_id
    assert (strict.num_remove, strict.num_exact_copies) == (3, 3)
    assert storage.exists(done[0].manifest_url)


def test_failed_shards_name_themselves_and_only_they_are_embedded_again(
    night: Night, tmp_path: Path, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"junction-1/000.jpg", "junction-9/000.jpg"}
    source = tmp_path / "source"
    shutil.copytree(night.folder, source)
    for name in bad:
        (source / name).rename(source / name.replace("000", "bad"))
    monkeypatch.setattr(FlakyFileSystem, "bad_names", {"bad.jpg": FOREVER})
    execution = {"images_per_shard": 8, "workers": 2, "batch_size": 8}

    with pytest.raises(NightIncompleteError) as failure:
        run(f"flaky://{source}", tmp_path / "workspace", execution=execution)

    # Six shards of 8 images, the last of 3; the first holds junction-1 and the last junction-9.
    message = str(failure.value)
    assert message.startswith("2 of 6 shards failed, 11 images are not embedded: shard 0 (8 images")
    assert "shard 5 (3 images" in message
    assert "Input/output error" in message
    assert "junction-1/bad.jpg" in message
    assert not list((tmp_path / "workspace").glob("runs/*/manifest.parquet"))
    assert sum(embedded) == 30  # of 32 images, two of which are exact copies

    monkeypatch.setattr(FlakyFileSystem, "bad_names", {})
    embedded.clear()
    forget_features()
    summary = run(f"flaky://{source}", tmp_path / "workspace", execution=execution)
    # The broken file never gets that far, and one of the ten is an exact copy of another.
    assert (sum(embedded), summary.num_embedded) == (9, 10)
    assert (summary.num_images, summary.num_remove, summary.is_complete) == (43, 31, True)


def test_dead_store_ends_the_run_before_every_shard_has_waited_for_it(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.name for path in night.folder.rglob("*.*")]
    monkeypatch.setattr(FlakyFileSystem, "bad_names", dict.fromkeys(names, FOREVER))
    with pytest.raises(NightIncompleteError) as failure:
        run(f"flaky://{night.folder}", tmp_path, execution={"images_per_shard": 2, "workers": 1})
    message = str(failure.value)
    assert message.startswith(
        "3 of 22 shards failed, 43 images are not embedded: shard 0 (2 images"
    )
    assert "; after these, one after the other, 19 more were not tried. The others" in message
    numbers = {"num_failed": 3, "num_untried": 19, "num_images": 43}
    told = {"message": message, "source_url": f"flaky://{night.folder}", **numbers}
    assert_told("shards.failed", told)


def test_fault_that_passes_is_retried_within_the_run(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlakyFileSystem, "bad_names", {"003.jpg": 1})
    summary = run(f"flaky://{night.folder / 'junction-1'}", tmp_path)
    assert (summary.num_images, summary.is_complete) == (6, True)
    assert FlakyFileSystem.bad_names == {"003.jpg": 0}


def test_partial_night_says_so_and_skips_what_is_missing(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlakyFileSystem, "bad_names", {"000.jpg": FOREVER})
    source = f"flaky://{night.folder / 'junction-1'}"
    settings = {"allow_partial": True, "execution": {"images_per_shard": 2}}
    partial = run(source, tmp_path, **settings)
    skipped = [row for row in manifest_of(partial) if row["action"] == "skip"]
    assert partial.is_complete is False
    assert [alert.name for alert in partial.alerts] == ["shards.failed"]
    assert [row["reason"] for row in skipped] == ["not embedded: its shard failed"] * 2

    monkeypatch.setattr(FlakyFileSystem, "bad_names", {})
    complete = run(source, tmp_path, **settings)
    assert complete.is_complete is True
    assert complete.run_id != partial.run_id
    assert storage.exists(partial.manifest_url)


def test_on_s3_the_clusters_are_the_same(
    night: Night, done: tuple[Summary, Path], s3_url: str
) -> None:
    fs, path = storage.filesystem(s3_url)
    fs.put(f"{night.folder}/", f"{path}/night/", recursive=True)
    summary = run(f"{s3_url}/night", f"{s3_url}/workspace")

    def content(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [(row["sha256"], row["size_bytes"], row["cluster_id"]) for row in rows]

    # Which of two equally good images stays depends on the upload times.
    on_s3, local = manifest_of(summary), manifest_of(done[0])
    assert content(on_s3) == content(local)
    assert (summary.num_keep, summary.num_orphans) == (done[0].num_keep, 0)
    assert {len(row["etag"]) for row in on_s3} == {32}
    assert {row["keeper_url"] for row in on_s3} - {None} <= {
        row["url"] for row in on_s3 if row["action"] == "keep"
    }


def test_partitions_are_never_neighbors(night: Night, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for camera in ("north", "south"):
        shutil.copytree(night.folder / "junction-1", source / camera)
    together = run(source, tmp_path / "workspace")
    apart = run(source, tmp_path / "apart", source={"partition_by": "^([^/]+)/"})
    assert (together.num_clusters, together.num_keep) == (1, 1)
    assert (apart.num_clusters, apart.num_keep) == (2, 2)
    assert apart.num_exact_copies == 7


def test_approximate_search_decides_as_the_exact_one(
    night: Night, done: tuple[Summary, Path]
) -> None:
    approximate = run(night.folder, done[1], neighbors={"exact_up_to": 0}, rebuild=True)
    assert (approximate.recall, approximate.is_search_exact) == (1.0, False)
    assert manifest_of(approximate) == manifest_of(done[0])


def test_search_that_finds_too_little_goes_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In one cell each; and the twins are so far apart that their nearest pivots may well differ.
    monkeypatch.setattr("flows.dedup.SEARCH_DEPTHS", (1, 0))
    rng = np.random.default_rng(0)
    one_of_each = normalize_features(rng.random((1_500, 512), np.float32), power=1.0)
    noise = rng.normal(0, 0.008, one_of_each.shape).astype(np.float32)
    twins = normalize_features(np.abs(one_of_each + noise), power=1.0)
    already_embedded(tmp_path, np.concatenate([one_of_each, twins]))
    search = {"exact_up_to": 0, "n_trees": 1, "eps": 0.02}
    urls = (tmp_path / "source", tmp_path / "workspace")

    poor = run(*urls, neighbors=search | {"min_recall": 0.0})
    good = run(*urls, neighbors=search, rebuild=True)

    assert (poor.is_search_exact, poor.recall < 0.999, poor.num_orphans) == (False, True, 0)
    assert (good.is_search_exact, good.recall, good.num_clusters) == (True, 1.0, 1_500)


def already_embedded(folder: Path, features: NDArray[np.float32]) -> None:
    """Fill a source with as many files, and the workspace with these features of them."""
    (folder / "source").mkdir()
    for number in range(len(features)):
        (folder / "source" / f"{number:05}.jpg").write_bytes(str(number).encode())
    settings = FeatureSettings(image_size=112, dtype="float32")
    files = storage.list_files(storage.absolute_url(str(folder / "source")))
    rows = [
        {
            "image_id": image_id(file.url, file.size_bytes, file.etag),
            "url": file.url,
            "size_bytes": file.size_bytes,
            "etag": file.etag,
            "sha256": hashlib.sha256(file.relative_path.encode()).hexdigest(),
            "width": 640,
            "height": 480,
            "sharpness": 1.0,
            "feature": feature,
            "error": None,
        }
        for file, feature in zip(files, features, strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=FEATURES)
    store = store_url(storage.absolute_url(str(folder / "workspace")), settings)
    storage.publish_table(
        storage.join(store, "made-here.parquet"),
        table.replace_schema_metadata(feature_metadata(settings)),
    )


def test_only_the_original_method_leaves_orphans(tmp_path: Path) -> None:
    # A chain: neighbours are 0.03 apart, every second one 0.118.
    angles = np.arange(5) * np.arccos(1 - 0.03)
    chain = np.zeros((5, 512), np.float32)
    chain[:, 0], chain[:, 1] = np.cos(angles), np.sin(angles)
    already_embedded(tmp_path, chain)
    urls = (tmp_path / "source", tmp_path / "workspace")

    first = run(*urls, clusters={"keepers": "first"})
    cover = run(*urls, rebuild=True)

    assert (first.num_keep, first.num_remove, first.num_orphans) == (1, 4, 3)
    assert (cover.num_keep, cover.num_remove, cover.num_orphans) == (2, 3, 0)
    assert [row["reason"] for row in manifest_of(first)] == [
        "keeper",
        "within eps",
        "same cluster",
        "same cluster",
        "same cluster",
    ]


class TestUnusualNights:
    def test_no_image(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        summary = run(tmp_path / "source", tmp_path / "workspace")
        assert (summary.num_images, summary.num_keep, summary.is_complete) == (0, 0, True)
        assert summary.percent_annotation_left == 100.0

    def test_one_image(self, night: Night, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        shutil.copy2(night.folder / "junction-1/000.jpg", tmp_path / "source")
        summary = run(tmp_path / "source", tmp_path / "workspace")
        assert (summary.num_images, summary.num_keep, summary.num_noise) == (1, 1, 1)

    def test_nothing_but_broken_files(self, night: Night, tmp_path: Path) -> None:
        summary = run(night.folder / "junction-9", tmp_path)
        assert (summary.num_images, summary.num_unreadable, summary.num_keep) == (1, 1, 0)

    def test_names_that_are_no_utf8_are_skipped(self, night: Night, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.mkdir()
        good = (night.folder / "junction-1/000.jpg").read_bytes()
        (source / "good.jpg").write_bytes(good)
        Path(os.fsdecode(bytes(source) + b"/b\xff.jpg")).write_bytes(good)
        rows = manifest_of(run(source, tmp_path / "workspace"))
        assert [(row["action"], row["reason"]) for row in rows] == [
            ("skip", "unreadable: file name is not valid UTF-8"),
            ("keep", "unique"),
        ]
        assert rows[0]["url"].endswith("/b\\udcff.jpg")

    def test_file_that_vanishes_is_skipped_and_looked_for_again(
        self, night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = tmp_path / "source"
        shutil.copytree(night.folder / "junction-1", source)
        read = storage.read_bytes
        monkeypatch.setattr(storage, "read_bytes", _vanishing("003.jpg", read))
        first = run(source, tmp_path / "workspace")
        monkeypatch.setattr(storage, "read_bytes", read)
        second = run(source, tmp_path / "workspace")
        assert [row["reason"] for row in manifest_of(first) if row["action"] == "skip"] == [
            "unreadable: file is gone"
        ]
        assert (second.num_unreadable, second.num_embedded) == (0, 1)

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="expected a folder of images, found nothing"):
            run(tmp_path / "nowhere", tmp_path / "workspace")
        assert not (tmp_path / "workspace").exists()

    def test_missing_bucket(self, s3_url: str) -> None:
        with pytest.raises(SourceError, match=r"found nothing: s3://no-such-bucket/night"):
            run("s3://no-such-bucket/night", f"{s3_url}/workspace")

    def test_source_in_the_workspace(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        with pytest.raises(SourceError, match="lies in the workspace"):
            run(tmp_path / "images", tmp_path)

    def test_workspace_in_the_source_is_not_listed(self, night: Night, tmp_path: Path) -> None:
        source = tmp_path / "source"
        shutil.copytree(night.folder / "junction-1", source)
        shutil.copytree(night.folder / "junction-2", source / "dedup" / "pictures")
        summary = run(source, source / "dedup")
        assert (summary.num_images, summary.num_ignored) == (6, {})


def _vanishing(name: str, read: Any) -> Any:
    def read_or_vanish(url: str) -> bytes:
        if url.endswith(name):
            raise FileNotFoundError(url)
        content: bytes = read(url)
        return content

    return read_or_vanish
