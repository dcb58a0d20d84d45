"""A run with other settings than before says what it would leave behind, and waits to be told."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from config import load_config
from flows import dedup as flow
from flows.dedup import dedup
from tasks import storage
from tasks.errors import ChangedSettingsError
from tasks.machine import Machine
from tasks.summary import Summary
from tests.flows.test_acting import tree
from tests.made_runs import FEATURES_OF_TESTS, fill_store, picture

pytestmark = pytest.mark.usefixtures("prefect_server")

NIGHTS = {"monday": {"0.png": 0, "1.png": 12, "2.png": 90}, "tuesday": {"3.png": 91, "4.png": 170}}
OTHER_FEATURES = {"features": FEATURES_OF_TESTS | {"power": 1.0}}
TOLD = (
    "--rebuild (in a profile rebuild: true) does it all the same, --no-library compares within the "
    "night alone"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, night in NIGHTS.items():
        for number, path in enumerate(night):
            file = tmp_path / name / path
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(picture(number + 10 * len(name)))
            os.utime(file, (1_700_000_000 + number,) * 2)
    return tmp_path


def run(folder: Path, name: str, workspace: str = "workspace", **settings: Any) -> Summary:
    said = {"source_url": str(folder / name), "workspace_url": str(folder / workspace)}
    config = load_config(None, {"features": FEATURES_OF_TESTS} | settings | said)
    if config.features.dtype != "auto":
        workspace_url = storage.absolute_url(str(folder / workspace))
        fill_store(workspace_url, config, NIGHTS[name], {}, name=name)
    return dedup(config)


def refusal(folder: Path, name: str, **settings: Any) -> str:
    """What a run says that must not write anything but, at most, the listing of the night."""
    workspace = folder / "workspace"
    said = {"source_url": str(folder / name), "workspace_url": str(workspace)}
    before = tree(storage.absolute_url(str(workspace)))
    with pytest.raises(ChangedSettingsError) as refused:
        dedup(load_config(None, {"features": FEATURES_OF_TESTS} | settings | said))
    after = tree(storage.absolute_url(str(workspace)))
    assert {path: after[path] for path in before} == before
    assert {path.rpartition("/")[2] for path in after.keys() - before.keys()} <= {
        "inventory.parquet"
    }
    return str(refused.value)


def libraries(folder: Path) -> list[int]:
    """Segments of each library."""
    return sorted(
        len(list(library.iterdir())) for library in (folder / "workspace" / "library").iterdir()
    )


def test_other_features_leave_the_library_behind_only_when_told(folder: Path) -> None:
    run(folder, "monday")

    assert refusal(folder, "tuesday", **OTHER_FEATURES) == (
        "the library of this workspace has other features (power 1.0, was 0.5). None of its 2 "
        "images of 1 nights would be compared with, and every image would be embedded anew. "
        f"{TOLD}; that library stays"
    )
    run(folder, "tuesday", **OTHER_FEATURES, library={"enabled": False})
    assert libraries(folder) == [1]
    run(folder, "tuesday", **OTHER_FEATURES, rebuild=True)
    assert libraries(folder) == [1, 1]
    # Both are in use from now on, and nobody is asked again.
    run(folder, "tuesday")
    run(folder, "monday", **OTHER_FEATURES)
    assert libraries(folder) == [2, 2]


def test_format_that_another_machine_chooses_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, "monday")
    fast = Machine(processor_flags=frozenset({"avx512_bf16"}), gpu_capabilities=())
    monkeypatch.setattr(flow, "this_machine", lambda: fast)

    with pytest.raises(
        ChangedSettingsError, match=r"other features \(dtype bfloat16, was float32\)"
    ):
        run(folder, "tuesday", features=FEATURES_OF_TESTS | {"dtype": "auto"})


def test_night_is_decided_otherwise_only_when_told(folder: Path) -> None:
    first = run(folder, "monday")
    run(folder, "tuesday")
    strict = {"neighbors": {"eps": 0.01}}

    assert refusal(folder, "monday", **strict) == (
        "this night was decided before with other settings (neighbors.eps 0.01, was 0.05). What it "
        "kept then, 2 images in the library, would be replaced by what it keeps now; 1 nights have "
        f"come after it. {TOLD}"
    )
    run(folder, "monday", **strict, library={"enabled": False})
    anew = run(folder, "monday", **strict, rebuild=True)
    assert (first.num_keep, anew.num_keep) == (2, 3)
    # It is the night's decision from now on, and the one before is asked about.
    assert run(folder, "monday", **strict).run_id == anew.run_id
    assert refusal(folder, "monday").startswith(
        "this night was decided before with other settings (neighbors.eps 0.05, was 0.01). What it "
        "kept then, 3 "
    )


def test_being_told_changes_no_byte(folder: Path) -> None:
    told = run(folder, "monday", rebuild=True)
    untold = run(folder, "monday", "other workspace")

    assert storage.read_bytes(told.manifest_url) == storage.read_bytes(untold.manifest_url)


def test_other_settings_for_a_new_night_are_one_line_of_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(folder, "monday")
    with caplog.at_level(logging.INFO, "tasks"):
        run(folder, "tuesday", neighbors={"eps": 0.04}, source={"partition_by": "^(.)"})

    lines = [r.getMessage() for r in caplog.records if r.name == "tasks.stage00_check_settings"]
    assert lines == [
        "other settings than those of the last night: neighbors.eps 0.04, was 0.05; "
        'source.partition_by "^(.)", was null; the library stays',
        "images that are in another partition than then are not compared with what earlier nights "
        "kept of them",
    ]


def test_camera_is_seen_in_another_view_only_when_told(folder: Path) -> None:
    run(folder, "monday")
    masked = {"view": {"region": [0.0, 0.1, 1.0, 1.0]}}

    assert refusal(folder, "tuesday", **masked) == (
        "1 partitions are seen in another view than before: ''. None of the 2 images that the "
        f"library has of them would be compared with, and theirs would be embedded anew. {TOLD}"
    )
    elsewhere = [{"pattern": "somewhere else", **masked}]
    assert run(folder, "tuesday", cameras=elsewhere).num_remove_for_earlier == 1


def test_where_nobody_can_tell_the_library_is_asked_about_and_the_night_is_not(
    folder: Path,
) -> None:
    run(folder, "monday")
    for name in ("runs", "features"):
        shutil.rmtree(folder / "workspace" / name)

    assert "has other features (nobody knows which). None of its 2 images" in refusal(
        folder, "tuesday", **OTHER_FEATURES
    )
    run(folder, "monday", neighbors={"eps": 0.01})
