"""Two cameras of one source with an eps and a window each, night after night and all the way."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from config import ActingSettings, load_apply_config, load_config
from flows.acting import apply_manifest, undo_apply
from flows.dedup import dedup
from flows.reviewing import review_manifest
from tasks import storage
from tasks.asking import neighbors_of, similarity
from tasks.evaluating import evaluate, evaluation_rows, sweep_lines
from tasks.exporting import about
from tasks.manifests import read_manifest
from tasks.runs import open_run
from tasks.summary import Summary, summary_rows
from tests.made_runs import FEATURES_OF_TESTS, fill_store, picture

pytestmark = pytest.mark.usefixtures("prefect_server")

DAY = 86_400
# Degrees on a circle: up to 18 are within an eps of 0.05, up to 8 within one of 0.01.
MONDAY = {"north/0.png": 0, "tunnel/0.png": 0, "tunnel/1.png": 120}
TUESDAY = {
    "north/0.png": 5,
    "north/1.png": 15,
    "north/2.png": 90,
    "tunnel/0.png": 5,
    "tunnel/1.png": 15,
    "tunnel/2.png": 16,
    "tunnel/3.png": 121,
}
SETTINGS = {
    "features": FEATURES_OF_TESTS,
    "source": {"partition_by": "^([^/]+)/"},
    "cameras": [{"pattern": "^tun", "eps": 0.01, "window": "1d"}],
}


@dataclass(frozen=True)
class Nights:
    """Two nights, and their runs in one workspace."""

    folder: Path
    workspace: str
    monday: Summary
    tuesday: Summary


def lay_out(folder: Path) -> None:
    for day, (name, night) in enumerate({"monday": MONDAY, "tuesday": TUESDAY}.items()):
        for number, path in enumerate(night):
            file = folder / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(100 * day + number))
            # Two days apart; what the tunnel saw late on Monday is within a day of Tuesday.
            seconds = 1_700_000_000 + 2 * day * DAY + number
            late = 1.5 * DAY if (name, path) == ("monday", "tunnel/1.png") else 0
            os.utime(file, (seconds + late,) * 2)


def run(folder: Path, workspace: str, name: str, **settings: Any) -> Summary:
    said = {"source_url": str(folder / name), "workspace_url": workspace}
    config = load_config(None, SETTINGS | settings | said)
    night = {"monday": MONDAY, "tuesday": TUESDAY}[name]
    store = storage.join(storage.absolute_url(workspace), "features")
    if not storage.exists(store) or len(storage.list_files(store)) < 2:
        fill_store(workspace, config, night, {}, name=name)
    return dedup(config)


def run_both(folder: Path, workspace: str, **settings: Any) -> Nights:
    names = ("monday", "tuesday")
    return Nights(folder, workspace, *(run(folder, workspace, n, **settings) for n in names))


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Nights:
    folder = tmp_path_factory.mktemp("cameras")
    lay_out(folder)
    return run_both(folder, str(folder / "workspace"))


def decisions(summary: Summary) -> list[tuple[Any, ...]]:
    table = pq.read_table(storage.local_path(summary.manifest_url))

    def short(url: str | None) -> str | None:
        return url and "/".join(url.split("/")[-3:])

    return [
        (short(row["url"]), row["action"], short(row["keeper_url"]), row["reason"])
        for row in table.to_pylist()
    ]


def test_each_camera_is_decided_by_its_own_eps_and_window(nights: Nights) -> None:
    old, old_tunnel, known = "monday/north/0.png", "monday/tunnel/1.png", "kept by an earlier night"
    assert decisions(nights.tuesday) == [
        (old, "library", None, known),
        (old_tunnel, "library", None, known),
        ("tuesday/north/0.png", "remove", old, "within eps"),
        ("tuesday/north/1.png", "remove", old, "within eps"),
        ("tuesday/north/2.png", "keep", None, "unique"),
        ("tuesday/tunnel/0.png", "keep", None, "unique"),
        ("tuesday/tunnel/1.png", "keep", None, "keeper"),
        ("tuesday/tunnel/2.png", "remove", "tuesday/tunnel/1.png", "within eps"),
        ("tuesday/tunnel/3.png", "remove", old_tunnel, "within eps"),
    ]
    assert (nights.tuesday.num_orphans, nights.tuesday.recall) == (0, 1.0)


def test_without_settings_of_their_own_cameras_decide_otherwise(
    nights: Nights, tmp_path: Path
) -> None:
    alike = run_both(nights.folder, str(tmp_path), cameras=())

    tunnel = [row for row in decisions(alike.tuesday) if "/tunnel/" in row[0]]
    assert [row[1] for row in tunnel] == ["library", "library", *["remove"] * 4]


@pytest.mark.parametrize("execution", [{"images_per_shard": 1, "items_per_search": 1}])
def test_same_bytes_however_the_work_is_cut(
    nights: Nights, tmp_path: Path, execution: dict[str, int]
) -> None:
    cut = run_both(nights.folder, str(tmp_path), execution=execution)

    for summary, other in ((cut.monday, nights.monday), (cut.tuesday, nights.tuesday)):
        assert summary.run_id == other.run_id
        assert storage.read_bytes(summary.manifest_url) == storage.read_bytes(other.manifest_url)


def test_report_and_summary_say_which_cameras_differ(nights: Nights) -> None:
    assert nights.tuesday.eps_of_cameras == {"^tun": 0.01}
    assert dict(summary_rows(nights.tuesday))["eps"] == "0.05; 0.01 for cameras '^tun'"
    page = storage.read_bytes(nights.tuesday.report_url).decode()
    assert "cosine distance of 0.05; 0.01 for cameras &#39;^tun&#39;." in page
    assert "Some cameras have an eps of their own" in page


def test_others_who_read_the_run_go_by_the_eps_of_the_camera(
    nights: Nights, tmp_path: Path
) -> None:
    places = {"workspace_url": nights.workspace, "run_id": nights.tuesday.run_id}

    def merged(camera: str) -> tuple[float, bool]:
        found = similarity(f"{camera}/0.png", f"{camera}/1.png", **places)
        return found.eps, found.would_be_merged

    assert (merged("north"), merged("tunnel")) == ((0.05, True), (0.01, False))
    near = neighbors_of("tunnel/0.png", k=2, **places)
    assert near.eps == 0.01
    assert [(n.url[-10:], n.is_within_eps) for n in near.neighbors] == [
        ("orth/0.png", True),
        ("orth/1.png", True),
    ]
    said = about(open_run(nights.workspace, nights.tuesday.run_id))
    assert (said["eps"], said["eps_of_cameras"]) == (0.05, {"^tun": 0.01})
    groups = tmp_path / "groups.csv"
    groups.write_text("path,group\n" + "".join(f"{path},{path[:6]}\n" for path in TUESDAY))
    evaluation = evaluate(str(groups), with_sweep=True, **places)
    assert dict(evaluation_rows(evaluation))["eps"] == "0.05; 0.01 for cameras '^tun'"
    assert sweep_lines(evaluation)[-1].startswith("Each line takes one eps for all cameras")


def test_review_is_heeded_by_the_eps_of_the_camera(nights: Nights, tmp_path: Path) -> None:
    both = run_both(nights.folder, str(tmp_path / "workspace"))
    manifest = read_manifest(both.tuesday.manifest_url)
    url = next(u for u in manifest.table["url"].to_pylist() if u.endswith("tunnel/2.png"))
    review = {
        "format": "image-dedup review 1",
        "run_id": both.tuesday.run_id,
        "manifest_digest": manifest.digest,
        "choices": [{"choice": "keep this one", "url": url}],
    }
    (tmp_path / "review.json").write_text(json.dumps(review))

    reviewed = review_manifest(both.tuesday.manifest_url, str(tmp_path / "review.json"))
    again = run(nights.folder, both.workspace, "tuesday")

    assert again.run_id == reviewed.run_id
    actions = {row[0]: row[1] for row in decisions(again)}
    # The chosen one takes the place of its keeper, and 11 degrees away nothing goes for it.
    assert actions["tuesday/tunnel/2.png"] == "keep"
    assert actions["tuesday/tunnel/1.png"] == "remove"
    assert actions["tuesday/tunnel/0.png"] == "keep"
    assert again.num_orphans == 0


def test_apply_acts_on_it_and_puts_back(nights: Nights) -> None:
    said = {"manifest_url": nights.tuesday.manifest_url, "execute": True}
    settings = load_apply_config(None, said)

    done = apply_manifest(settings)

    assert (done.num_done, done.num_problems) == (4, 0)
    left = sorted(str(p.relative_to(nights.folder)) for p in nights.folder.rglob("t*/*/*.png"))
    kept = [row[0] for row in decisions(nights.tuesday) if row[1] == "keep"]
    assert [path for path in left if path.startswith("tuesday/")] == kept
    assert undo_apply(done.apply_id, nights.workspace, ActingSettings()).num_done == 4
