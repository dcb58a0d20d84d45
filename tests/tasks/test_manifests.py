"""Reading manifests back, and writing them for spreadsheets."""

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks import storage
from tasks.errors import ArtifactError
from tasks.manifests import manifest_url_of, read_manifest, report_url_of, write_csv
from tasks.schemas import MANIFEST

METADATA = {
    "run_id": "night-1",
    "source_url": "s3://bucket/night",
    "eps": "0.05",
    "recall": "1.0",
    "is_complete": "true",
    "is_search_exact": "true",
    "weights_digest": "abc",
    "num_ignored": "{}",
    "schema_version": "1",
}
ROWS: list[dict[str, Any]] = [
    {
        "url": "s3://bucket/a.jpg",
        "size_bytes": 1_000,
        "etag": "e1",
        "sha256": "aa",
        "cluster_id": 0,
        "action": "keep",
        "keeper_url": None,
        "distance": None,
        "reason": "keeper",
    },
    {
        "url": 'file:///b "x",\n1',
        "size_bytes": 20,
        "etag": "e2",
        "sha256": "bb",
        "cluster_id": 0,
        "action": "remove",
        "keeper_url": "s3://bucket/a.jpg",
        "distance": 0.03125,
        "reason": "within eps",
    },
    {
        "url": "s3://bucket/c.jpg",
        "size_bytes": 0,
        "etag": "e3",
        "sha256": None,
        "cluster_id": -1,
        "action": "skip",
        "keeper_url": None,
        "distance": None,
        "reason": "unreadable: empty file",
    },
]
TABLE = pa.Table.from_pylist(ROWS, MANIFEST)


def publish(folder: str, **metadata: str) -> str:
    url = f"{folder}/runs/night-1/manifest.parquet"
    storage.publish_table(url, TABLE.replace_schema_metadata(METADATA | metadata))
    return url


def test_manifest_reads_back_with_its_summary(place: str) -> None:
    place = storage.absolute_url(place)
    loaded = read_manifest(publish(place))
    assert loaded.table.to_pylist() == ROWS
    assert (loaded.summary.run_id, loaded.summary.num_remove) == ("night-1", 1)
    assert loaded.summary.manifest_url == f"{place}/runs/night-1/manifest.parquet"
    assert loaded.summary.report_url == f"{place}/runs/night-1/report.html"
    assert loaded.summary.num_embedded is None


def test_manifest_may_be_named_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(str(tmp_path))
    monkeypatch.chdir(tmp_path / "runs")
    assert read_manifest("night-1/manifest.parquet").table.num_rows == 3


def test_missing_manifest_is_named(place: str) -> None:
    url = storage.absolute_url(f"{place}/nowhere.parquet")
    with pytest.raises(ArtifactError) as refusal:
        read_manifest(url)
    assert str(refusal.value) == f"expected a Parquet file, found nothing: {url}"


@pytest.mark.parametrize("version", ["0", "2", ""])
def test_manifest_of_another_version_is_refused(tmp_path: Path, version: str) -> None:
    url = storage.absolute_url(publish(str(tmp_path), schema_version=version))
    with pytest.raises(ArtifactError) as refusal:
        read_manifest(url)
    assert str(refusal.value) == f"manifest has schema version {version}, expected 1: {url}"


def test_table_that_only_looks_like_a_manifest_is_refused(tmp_path: Path) -> None:
    storage.publish_table(f"{tmp_path}/m.parquet", TABLE)
    with pytest.raises(
        ArtifactError, match=r"^manifest has schema version None, expected 1: file:"
    ):
        read_manifest(f"{tmp_path}/m.parquet")


def test_other_table_is_no_manifest(tmp_path: Path) -> None:
    storage.publish_table(f"{tmp_path}/m.parquet", TABLE.drop_columns(["action"]))
    with pytest.raises(ArtifactError, match=f"file://{tmp_path}/m.parquet"):
        read_manifest(f"{tmp_path}/m.parquet")


def test_other_file_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_text("url,action\n")
    with pytest.raises(ArtifactError, match=r"^expected a Parquet file, found something else: "):
        read_manifest(f"{tmp_path}/m.parquet")


def test_manifest_and_report_of_a_run_lie_side_by_side(tmp_path: Path) -> None:
    url = manifest_url_of("s3://bucket/work/", "night-1")
    assert url == "s3://bucket/work/runs/night-1/manifest.parquet"
    assert report_url_of(url) == "s3://bucket/work/runs/night-1/report.html"
    local = manifest_url_of(str(tmp_path), "night-1")
    assert local == f"{storage.absolute_url(str(tmp_path))}/runs/night-1/manifest.parquet"


def test_csv_has_a_header_and_a_line_for_every_image() -> None:
    file = io.BytesIO()
    write_csv(TABLE, file)
    assert file.getvalue().decode() == (
        '"url","size_bytes","etag","sha256","cluster_id","action","keeper_url","distance","reason"\n'
        '"s3://bucket/a.jpg",1000,"e1","aa",0,"keep",,,"keeper"\n'
        '"file:///b ""x"",\n1",20,"e2","bb",0,"remove","s3://bucket/a.jpg",0.03125,"within eps"\n'
        '"s3://bucket/c.jpg",0,"e3",,-1,"skip",,,"unreadable: empty file"\n'
    )


def test_csv_reads_back_with_any_name() -> None:
    file = io.BytesIO()
    write_csv(TABLE, file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue().decode(), newline="")))
    assert [row["url"] for row in rows] == [row["url"] for row in ROWS]
