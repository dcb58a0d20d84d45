"""The `dedup` command, as a process of its own."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL

from config import FeatureSettings
from tasks.feature_store import feature_metadata, store_url
from tasks.schemas import FEATURES, LIBRARY
from tasks.storage import absolute_url, publish_table
from tests.conftest import Night

DEDUP = str(Path(sys.executable).parent / "dedup")
SUMMARY_FIELDS = {
    *("run_id", "manifest_url", "is_complete", "num_images", "num_unreadable", "num_exact_copies"),
    *("num_clusters", "num_noise", "num_keep", "num_remove", "num_orphans", "bytes_saved"),
    *("recall", "num_embedded", "seconds"),
}


def dedup(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [DEDUP, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture
def with_server(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of this test use the session's Prefect server."""
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())


def test_run_without_a_server_prints_one_json_object_and_show_repeats_it(
    night: Night, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    finished = dedup("run", night.folder, "--workspace", workspace, "--image-size", 64, "--json")
    assert finished.returncode == 0, finished.stderr
    summary = json.loads(finished.stdout)
    assert summary.keys() >= SUMMARY_FIELDS
    assert (summary["num_images"], summary["num_unreadable"], summary["num_orphans"]) == (43, 1, 0)
    assert "shard 0: 43 images, 1 unreadable" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert "oneDNN" not in finished.stderr

    shown = dedup("show", summary["run_id"], "--workspace", workspace, "--json")
    again = json.loads(shown.stdout)
    of_this_execution = (
        *("num_embedded", "seconds", "executed_at", "night_id", "settings_digest"),
        "mean_nearest_distance",
    )
    assert {name: again[name] for name in again if name not in of_this_execution} == {
        name: summary[name] for name in summary if name not in of_this_execution
    }

    rows = list(csv.DictReader(io.StringIO(dedup("show", summary["manifest_url"], "--csv").stdout)))
    assert len(rows) == 43
    assert list(rows[0]) == [
        *("url", "size_bytes", "etag", "sha256", "cluster_id", "action", "keeper_url"),
        *("distance", "reason"),
    ]


def test_summary_for_people_names_manifest_and_report(
    night: Night, tmp_path: Path, with_server: None
) -> None:
    arguments = ("--image-size", 32, "--price-per-image", 0.5, "--workers", 2)
    finished = dedup("run", night.folder / "junction-1", "--workspace", tmp_path, *arguments)
    lines = dict(line.split("  ", 1) for line in finished.stdout.splitlines())
    assert finished.returncode == 0, finished.stderr
    assert lines["images"].strip() == "6"
    assert lines["annotation cost"].strip() == "0.50 left, 2.50 saved"
    assert Path(lines["manifest"].strip().removeprefix("file://")).is_file()
    assert Path(lines["report"].strip().removeprefix("file://")).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eps", "7"], "neighbors.eps: Input should be less than or equal to 1"),
        (["--keepers", "best"], "clusters.keepers: Input should be 'cover' or 'first'"),
        (["--config", "no-such.yaml"], "cannot read config no-such.yaml: No such file"),
        (["--partition-by", "("], "source.partition_by: not a regular expression"),
        (["--suffix", "jpg"], "expected a suffix that starts with a dot, found 'jpg'"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_message(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    finished = dedup("run", tmp_path, "--workspace", tmp_path / "w", *arguments)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "w").exists()


def test_credentials_in_a_url_are_refused_and_not_repeated(tmp_path: Path) -> None:
    finished = dedup("run", "s3://key:topsecret@bucket/night", "--workspace", tmp_path)
    assert finished.returncode == 2
    assert "the URL carries credentials" in finished.stderr
    assert "topsecret" not in finished.stderr


def test_failure_exits_with_1_and_one_message(tmp_path: Path, with_server: None) -> None:
    finished = dedup("run", tmp_path / "nowhere", "--workspace", tmp_path / "w", "--json")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.strip() == (
        f"error: expected a folder of images, found nothing: file://{tmp_path}/nowhere"
    )


def test_other_settings_exit_with_1_and_what_they_would_leave_behind(
    tmp_path: Path, with_server: None
) -> None:
    library = tmp_path / "w" / "library" / "f"
    library.mkdir(parents=True)
    row = {"image_id": "a", "url": "file:///a.jpg", "size_bytes": 1, "etag": "e", "camera": ""}
    row |= {"captured_at": 0, "sha256": "ab", "feature": np.zeros(512, np.float32)}
    name = "000001-monday-0123456789abcdef.parquet"
    pq.write_table(pa.Table.from_pylist([row], LIBRARY), library / name)

    finished = dedup("run", tmp_path, "--workspace", tmp_path / "w", "--json")

    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.strip() == (
        "error: the library of this workspace has other features (nobody knows which). "
        "None of its 1 images of 1 nights would be compared with, and every image would be "
        "embedded anew. --rebuild (in a profile rebuild: true) does it all the same, --no-library "
        "compares within the night alone; that library stays"
    )
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["library"]


def test_wrong_weights_exit_with_1_and_the_tensor(
    night: Night, tmp_path: Path, with_server: None
) -> None:
    (tmp_path / "weights.h5").write_bytes(b"no weights")
    arguments = ("--workspace", tmp_path / "w", "--weights", tmp_path / "weights.h5")
    finished = dedup("run", night.folder, *arguments)
    assert finished.returncode == 1
    assert f"cannot read {tmp_path}/weights.h5" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_show_of_a_missing_manifest_exits_with_1(tmp_path: Path) -> None:
    finished = dedup("show", tmp_path / "manifest.parquet")
    assert finished.returncode == 1
    assert "expected a Parquet file, found nothing" in finished.stderr


def test_show_of_a_run_needs_its_workspace() -> None:
    finished = dedup("show", "night-0123")
    assert finished.returncode == 2
    assert "give its --workspace" in finished.stderr


def test_template_takes_the_date_that_was_said(tmp_path: Path, with_server: None) -> None:
    (tmp_path / "2026-01-31").mkdir()
    source = tmp_path / "{yesterday}"
    arguments = ("--workspace", tmp_path / "w", "--date", "2026-02-01", "--json")
    finished = dedup("run", source, *arguments)
    assert json.loads(finished.stdout)["source_url"] == f"file://{tmp_path}/2026-01-31"


def test_configured_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    nobody = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    finished = dedup("run", tmp_path, "--workspace", tmp_path / "w", **nobody)
    assert finished.returncode == 1
    assert "no Prefect server answers at http://127.0.0.1:9/api" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_compact_merges_the_files_of_a_workspace(tmp_path: Path) -> None:
    store = store_url(absolute_url(str(tmp_path)), FeatureSettings())
    for name in "abc":
        row = {"image_id": name, "url": f"/{name}", "size_bytes": 1, "etag": "e", "error": "bad"}
        rows = pa.Table.from_pylist([row], FEATURES)
        publish_table(
            f"{store}/{name}.parquet",
            rows.replace_schema_metadata(feature_metadata(FeatureSettings())),
        )
    finished = dedup("compact", "--workspace", tmp_path)
    assert (finished.returncode, finished.stdout) == (0, f"3 -> 1  {store}\n")
    assert "merged 3 feature files" in finished.stderr
