"""Night after night: what an earlier one kept is never kept again, and never removed."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from config import load_apply_config, load_config
from flows.acting import apply_manifest
from flows.dedup import dedup
from flows.reviewing import review_manifest
from tasks import storage
from tasks.manifests import read_manifest
from tasks.runs import open_run
from tasks.summary import Summary
from tests.conftest import Night

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(source: object, workspace: object, /, **settings: Any) -> Summary:
    features = {"image_size": 112, "dtype": "float32"}
    execution = {"retry_delay_seconds": 0, "max_retries": 1}
    said = {"source_url": str(source), "workspace_url": str(workspace), **settings}
    return dedup(load_config(None, said | {"features": features, "execution": execution}))


def rows_of(summary: Summary) -> dict[str, dict[str, Any]]:
    """Rows of the manifest by the last two parts of the path."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(summary.manifest_url)))
    return {"/".join(row["url"].split("/")[-3:]): row for row in table.to_pylist()}


def decisions(summary: Summary) -> dict[str, str]:
    return {name: row["action"] for name, row in rows_of(summary).items()}


def lay_out(night: Night, folder: Path, **nights: list[str]) -> Path:
    """Copy frames of the night into a folder for each night."""
    for name, frames in nights.items():
        for frame in frames:
            target = folder / name / frame
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(night.folder / frame, target)
    return folder


@pytest.fixture(scope="module")
def two_nights(
    night: Night, tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> tuple[Path, Summary, Summary]:
    """Two nights of junction 1 and 2; the second brings copies, twins and something new."""
    folder = lay_out(
        night,
        tmp_path_factory.mktemp("nights"),
        monday=["junction-1/000.jpg", "junction-1/001.jpg", "junction-2/000.jpg"],
        tuesday=[
            *("junction-1/002.jpg", "junction-1/005.jpg", "junction-3/000.jpg"),
            *("junction-3/001.jpg", "junction-8/000.jpg"),
        ],
    )
    workspace = folder / "workspace"
    return folder, run(folder / "monday", workspace), run(folder / "tuesday", workspace)


def test_second_night_removes_what_the_first_has_kept(
    two_nights: tuple[Path, Summary, Summary],
) -> None:
    _, monday, tuesday = two_nights

    assert decisions(monday) == {
        "monday/junction-1/000.jpg": "keep",
        "monday/junction-1/001.jpg": "remove",
        "monday/junction-2/000.jpg": "keep",
    }
    rows = rows_of(tuesday)
    assert {
        name: (row["action"], row["reason"], row["cluster_id"]) for name, row in rows.items()
    } == {
        "monday/junction-1/000.jpg": ("library", "kept by an earlier night", 1),
        "tuesday/junction-1/002.jpg": ("remove", "within eps", 1),
        "tuesday/junction-1/005.jpg": ("remove", "exact copy", 1),
        "tuesday/junction-3/000.jpg": ("keep", "keeper", 0),
        "tuesday/junction-3/001.jpg": ("remove", "within eps", 0),
        "tuesday/junction-8/000.jpg": ("keep", "unique", -1),
    }
    kept = rows["monday/junction-1/000.jpg"]
    assert {rows[f"tuesday/junction-1/00{n}.jpg"]["keeper_url"] for n in (2, 5)} == {kept["url"]}
    assert kept["sha256"] == rows["tuesday/junction-1/005.jpg"]["sha256"]


def test_summary_counts_this_night_alone(two_nights: tuple[Path, Summary, Summary]) -> None:
    _, _, tuesday = two_nights

    assert (tuesday.num_images, tuesday.num_keep, tuesday.num_remove) == (5, 2, 3)
    assert (tuesday.num_remove_for_earlier, tuesday.num_kept_before) == (2, 0)
    assert tuesday.num_orphans == 0


def test_report_shows_the_keeper_of_the_earlier_night(
    two_nights: tuple[Path, Summary, Summary],
) -> None:
    folder, _, tuesday = two_nights

    rows = storage.read_bytes(
        f"{tuesday.report_url.removesuffix('index.html')}data/rows-000000.js"
    ).decode()

    kept = f"file://{folder}/monday/junction-1/000.jpg"
    shown = json.loads(rows.removeprefix("report.rows(0,").removesuffix(");\n"))
    (earlier,) = (row for row in shown if row["is_elsewhere"])
    assert (earlier["path"], earlier["action"]) == (kept, "keep")
    assert earlier["thumbnail"].startswith("data:image/jpeg;base64,")


def test_run_is_asked_about_its_own_images(two_nights: tuple[Path, Summary, Summary]) -> None:
    folder, _, tuesday = two_nights

    run = open_run(str(folder / "workspace"), tuesday.run_id)

    assert run.manifest.table["action"].to_pylist().count("library") == 0
    assert run.images.num_rows == 5


def test_any_night_again_decides_the_same(two_nights: tuple[Path, Summary, Summary]) -> None:
    folder, monday, tuesday = two_nights
    before = [storage.read_bytes(summary.manifest_url) for summary in (monday, tuesday)]
    segments = storage.list_parquet(str(next((folder / "workspace" / "library").iterdir())))

    again = [run(folder / name, folder / "workspace") for name in ("tuesday", "monday")]

    assert [summary.run_id for summary in again] == [tuesday.run_id, monday.run_id]
    assert [storage.read_bytes(summary.manifest_url) for summary in again] == before[::-1]
    assert [summary.num_embedded for summary in again] == [0, 0]
    library = str(next((folder / "workspace" / "library").iterdir()))
    assert storage.list_parquet(library) == segments
    assert len(segments) == 2


def test_without_the_library_a_night_stands_alone(
    two_nights: tuple[Path, Summary, Summary],
) -> None:
    folder, _, tuesday = two_nights

    alone = run(folder / "tuesday", folder / "workspace", library={"enabled": False})

    assert alone.run_id != tuesday.run_id
    assert sorted(decisions(alone).values()) == ["keep", "keep", "keep", "remove", "remove"]


def test_apply_looks_after_the_keeper_of_the_earlier_night(night: Night, tmp_path: Path) -> None:
    frames = ["junction-1/000.jpg", "junction-1/001.jpg", "junction-1/002.jpg"]
    folder = lay_out(night, tmp_path, monday=frames[:1], tuesday=frames[1:])
    workspace = folder / "workspace"
    run(folder / "monday", workspace)
    tuesday = run(folder / "tuesday", workspace)
    assert sorted(decisions(tuesday).values()) == ["library", "remove", "remove"]
    settings = load_apply_config(
        None,
        {
            "manifest_url": tuesday.manifest_url,
            "workspace_url": str(workspace),
            "execute": True,
            "guards": {"max_removed_fraction": 1.0},
        },
    )
    keeper = folder / "monday" / frames[0]
    aside = keeper.rename(folder / "aside.jpg")

    refused = apply_manifest(settings)
    aside.rename(keeper)
    done = apply_manifest(settings)

    assert (refused.num_done, refused.num_problems) == (0, 2)
    assert (done.num_done, done.num_problems) == (2, 0)
    assert keeper.exists()
    assert not list((folder / "tuesday").rglob("*.jpg"))


def test_folder_that_grows_keeps_what_it_kept(night: Night, tmp_path: Path) -> None:
    frames = [f"junction-1/00{number}.jpg" for number in range(4)]
    folder = lay_out(night, tmp_path, all=[*frames[:2], "junction-2/000.jpg"])
    first = run(folder / "all", folder / "workspace")
    lay_out(night, tmp_path, all=[frames[2], "junction-2/001.jpg", "junction-4/000.jpg"])

    second = run(folder / "all", folder / "workspace")

    kept = {name for name, action in decisions(first).items() if action == "keep"}
    assert kept == {"all/junction-1/000.jpg", "all/junction-2/000.jpg"}
    assert decisions(second) == {
        "all/junction-1/000.jpg": "keep",
        "all/junction-1/001.jpg": "remove",
        "all/junction-1/002.jpg": "remove",
        "all/junction-2/000.jpg": "keep",
        "all/junction-2/001.jpg": "remove",
        "all/junction-4/000.jpg": "keep",
    }
    reasons = {name: row["reason"] for name, row in rows_of(second).items()}
    assert {name for name in kept if reasons[name] == "kept by an earlier night"} == kept
    assert second.num_kept_before == 2


def test_partitions_have_libraries_of_their_own(night: Night, tmp_path: Path) -> None:
    frames = ["junction-1/000.jpg"]
    folder = lay_out(night, tmp_path, monday=frames)
    (folder / "tuesday" / "junction-2").mkdir(parents=True)
    shutil.copy2(night.folder / frames[0], folder / "tuesday" / "junction-2" / "000.jpg")
    settings = {"source": {"partition_by": "^([^/]+)/"}}
    run(folder / "monday", folder / "workspace", **settings)

    tuesday = run(folder / "tuesday", folder / "workspace", **settings)

    assert list(decisions(tuesday).values()) == ["keep"]


def test_images_of_the_night_are_in_the_partition_of_the_night(
    night: Night, tmp_path: Path
) -> None:
    frames = [f"junction-{camera}/00{number}.jpg" for camera in (1, 2) for number in range(2)]
    folder = lay_out(night, tmp_path, all=frames)
    run(folder / "all", folder / "workspace")

    apart = run(folder / "all", folder / "workspace", source={"partition_by": "^([^/]+)/"})

    assert sorted(decisions(apart).values()) == ["keep", "keep", "remove", "remove"]
    assert apart.num_kept_before == 2


def test_window_forgets_what_is_older(night: Night, tmp_path: Path) -> None:
    folder = lay_out(night, tmp_path, monday=["junction-1/000.jpg"], tuesday=["junction-1/001.jpg"])
    run(folder / "monday", folder / "workspace")

    # The two frames were taken one second apart.
    near = run(folder / "tuesday", folder / "workspace", library={"window": "1s"})
    far = run(folder / "tuesday", folder / "workspace", library={"window": "0s"}, rebuild=True)

    assert sorted(decisions(near).values()) == ["library", "remove"]
    assert sorted(decisions(far).values()) == ["keep"]


def test_nights_together_keep_what_one_run_keeps(night: Night, tmp_path: Path) -> None:
    frames = sorted(str(path.relative_to(night.folder)) for path in night.folder.rglob("*.jpg"))
    folder = lay_out(night, tmp_path, **{f"night-{n}": frames[n::3] for n in range(3)})

    nights = [run(folder / f"night-{n}", folder / "workspace") for n in range(3)]

    alone = run(night.folder, tmp_path / "alone")
    rows = [row for summary in nights for row in rows_of(summary).values()]
    kept = [row for row in rows if row["action"] == "keep"]
    assert len(kept) == alone.num_keep
    assert {row["reason"] for row in kept} <= {"unique", "keeper"}
    assert all(np.isfinite(row["distance"]) for row in rows if row["action"] == "remove")


def test_review_frees_an_image_from_its_earlier_twin(night: Night, tmp_path: Path) -> None:
    folder = lay_out(
        night,
        tmp_path,
        monday=["junction-1/000.jpg"],
        tuesday=["junction-1/001.jpg", "junction-1/002.jpg", "junction-4/000.jpg"],
    )
    workspace = folder / "workspace"
    run(folder / "monday", workspace)
    tuesday = run(folder / "tuesday", workspace)
    free = rows_of(tuesday)["tuesday/junction-1/001.jpg"]["url"]
    choices = {
        "format": "image-dedup review 1",
        "run_id": tuesday.run_id,
        "manifest_digest": read_manifest(tuesday.manifest_url).digest,
        "choices": [{"choice": "not a duplicate", "url": free}],
    }
    (tmp_path / "review.json").write_text(json.dumps(choices))

    reviewed = review_manifest(tuesday.manifest_url, str(tmp_path / "review.json"))
    again = run(folder / "tuesday", workspace)

    assert reviewed.num_changed_to_keep == 1
    assert again.run_id == reviewed.run_id
    assert {name: row["reason"] for name, row in rows_of(again).items()} == {
        "monday/junction-1/000.jpg": "kept by an earlier night",
        "tuesday/junction-1/001.jpg": "reviewed: not a duplicate",
        "tuesday/junction-1/002.jpg": "within eps",
        "tuesday/junction-4/000.jpg": "unique",
    }
    table = pq.read_table(io.BytesIO(storage.read_bytes(reviewed.manifest_url)))
    assert table.to_pylist() == list(rows_of(again).values())


def test_review_of_a_night_corrects_what_the_library_knows(night: Night, tmp_path: Path) -> None:
    folder = lay_out(
        night,
        tmp_path,
        monday=["junction-1/000.jpg", "junction-1/001.jpg"],
        tuesday=["junction-1/002.jpg"],
    )
    workspace = folder / "workspace"
    monday = run(folder / "monday", workspace)
    other = rows_of(monday)["monday/junction-1/001.jpg"]["url"]
    choices = {
        "format": "image-dedup review 1",
        "run_id": monday.run_id,
        "manifest_digest": read_manifest(monday.manifest_url).digest,
        "choices": [{"choice": "keep this one", "url": other}],
    }
    (tmp_path / "review.json").write_text(json.dumps(choices))
    review_manifest(monday.manifest_url, str(tmp_path / "review.json"))

    tuesday = run(folder / "tuesday", workspace)

    assert rows_of(tuesday)["tuesday/junction-1/002.jpg"]["keeper_url"] == other
