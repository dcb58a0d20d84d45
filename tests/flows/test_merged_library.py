"""A library that was merged: nights run again decide the same, and the next one sees all of it."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from config import load_config
from flows.cli import app
from flows.dedup import dedup
from tasks import merge_library as merging
from tasks import storage
from tasks.library import segment_names
from tasks.summary import Summary
from tests.made_runs import FEATURES_OF_TESTS, fill_store, picture
from tests.tasks.test_merge_library import killed_at

pytestmark = pytest.mark.usefixtures("prefect_server")

NIGHTS = {
    "monday": {"0.png": 0, "1.png": 90},
    "tuesday": {"2.png": 5, "3.png": 95, "4.png": 180},
    "wednesday": {"5.png": 185, "6.png": 270, "7.png": 91},
}


def run(folder: Path, name: str) -> Summary:
    workspace_url = storage.absolute_url(str(folder / "workspace"))
    for number, path in enumerate(NIGHTS[name]):
        file = folder / name / path
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_bytes(picture(number + 10 * len(name)))
            os.utime(file, (1_700_000_000 + number,) * 2)
    said = {"source_url": str(folder / name), "workspace_url": workspace_url}
    config = load_config(None, {"features": FEATURES_OF_TESTS} | said)
    fill_store(workspace_url, config, NIGHTS[name], {}, name=name)
    return dedup(config)


@pytest.mark.parametrize("num_discards", [0, 1, 9])
def test_nights_run_again_after_a_merge_give_the_same_bytes(
    tmp_path: Path, num_discards: int
) -> None:
    before = {name: run(tmp_path, name) for name in ("monday", "tuesday")}
    manifests = [storage.read_bytes(summary.manifest_url) for summary in before.values()]
    (library,) = storage.list_names(storage.absolute_url(str(tmp_path / "workspace" / "library")))
    names = segment_names(library)

    with killed_at(merging, num_discards):
        merging.merge_library(library)
    again = [run(tmp_path, name) for name in before]

    assert len(storage.list_parquet(library)) == max(3 - num_discards, 1)
    assert [summary.run_id for summary in again] == [old.run_id for old in before.values()]
    assert [storage.read_bytes(summary.manifest_url) for summary in again] == manifests
    assert segment_names(library) == names
    wednesday = run(tmp_path, "wednesday")
    assert (wednesday.num_remove_for_earlier, wednesday.num_keep) == (2, 1)
    assert segment_names(library)[:2] == names
    assert len(segment_names(library)) == 3


def test_compact_merges_the_library_too(tmp_path: Path) -> None:
    for name in ("monday", "tuesday"):
        run(tmp_path, name)

    result = CliRunner().invoke(app, ["compact", "--workspace", str(tmp_path / "workspace")])

    (library,) = storage.list_names(storage.absolute_url(str(tmp_path / "workspace" / "library")))
    (features,) = storage.list_names(storage.absolute_url(str(tmp_path / "workspace" / "features")))
    assert result.exit_code == 0
    assert f"2 -> 1  {features}\n2 -> 1  {library}\n" in result.output
