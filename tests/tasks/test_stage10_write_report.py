"""The report of a run: a folder that is complete when its page is there."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from config import AlertSettings
from tasks import storage
from tasks.stage10_write_report import make_report, write_report
from tasks.summary import Summary
from tests.written_reports import WrittenRun, write_run
from tests.written_summaries import write_summary

GROUPS = {"cam/a.jpg": {"cam/b.jpg": 0.0, "cam/c.jpg": 0.03125}}


def report_of(run: WrittenRun, **settings: Any) -> Summary:
    """Write the report in a flow of its own."""
    config = run.config.model_copy(update=settings)

    @flow
    def report_alone() -> Summary:
        return write_report(run.manifest, config, 7, {"list": 0.5})

    return report_alone()


@pytest.mark.usefixtures("prefect_server")
def test_report_and_summary_lie_beside_the_manifest(place: str) -> None:
    run = write_run(place, GROUPS, noise=["cam/n.jpg"], unreadable={"x.jpg": "unreadable: bad"})

    summary = report_of(run, price_per_image=2.0)

    assert (summary.num_embedded, summary.seconds) == (7, {"list": 0.5})
    assert (summary.cost_saved, summary.cost_left) == (4.0, 4.0)
    assert summary.report_url == f"{run.folder_url}/index.html"
    written = storage.read_bytes(storage.join(run.manifest.run_url, "summary.json"))
    assert Summary.model_validate_json(written) == summary
    files = [file.relative_path for file in storage.list_files(run.folder_url)]
    assert sorted(files) == [
        "data/groups.js",
        "data/paths-000000.js",
        "data/rows-000000.js",
        "index.html",
        "kept-over-eps.svg",
        "report.js",
    ]
    assert "x.jpg" in run.read("index.html")
    (argument,) = re.findall(r"report\.rows\(0,(.*)\);\n", run.read("data/rows-000000.js"))
    rows = json.loads(argument)
    assert [(row["path"], row["similarity"]) for row in rows] == [
        ("cam/a.jpg", None),
        ("cam/c.jpg", 96.88),
        ("cam/b.jpg", 100.0),
    ]
    assert rows[0]["captured_at"] == "2026-01-30 22:00:00"
    assert all(row["thumbnail"].startswith("data:image/jpeg;base64,") for row in rows)


def test_summary_says_what_those_need_who_compare_nights(tmp_path: Path) -> None:
    run = write_run(str(tmp_path), GROUPS)
    url = storage.join(run.manifest.run_url, "sweep.json")
    sweep = json.loads(storage.read_bytes(url))
    sweep["nearest_distances"]["mean"] = 0.0125
    storage.publish_bytes(url, json.dumps(sweep).encode())
    before = datetime.now(UTC).replace(microsecond=0)

    summary = make_report(run.manifest, run.config, 0, {})

    assert summary.mean_nearest_distance == 0.0125
    assert summary.executed_at is not None
    assert before <= summary.executed_at <= datetime.now(UTC)
    other = write_run(str(tmp_path / "other"), GROUPS, config='{"neighbors": {"eps": 0.1}}')
    other_summary = make_report(other.manifest, other.config, 0, {})
    assert other_summary.mean_nearest_distance is None  # swept before it was written down
    assert summary.settings_digest != other_summary.settings_digest


def test_night_unlike_those_before_says_so(tmp_path: Path) -> None:
    run = write_run(str(tmp_path), GROUPS, source_url="file:///cameras/2026-03-20")
    digest = make_report(run.manifest, run.config, 0, {}).settings_digest
    workspace_url = run.config.workspace_url
    for day in range(7):
        said = {"settings_digest": digest, "num_keep": 3, "num_remove": 0, "num_unreadable": 0}
        source_url = f"file:///cameras/2026-03-{day + 10}"
        write_summary(workspace_url, day, source_url=source_url, num_images=3, **said)

    (alert,) = make_report(run.manifest, run.config, 0, {}).alerts

    message = (
        "the share removed is 66.7%, the median of the 7 nights before is 0.0%, "
        "and up to 10.0% from it is usual"
    )
    assert (alert.name, alert.message) == ("drift", message)
    assert f"<b>Unlike other nights:</b> {message}." in run.read("index.html")
    tolerant = run.config.model_copy(update={"alerts": AlertSettings(min_change_removed=0.7)})
    assert make_report(run.manifest, tolerant, 0, {}).alerts == ()


def test_same_run_gives_the_same_bytes_in_all_but_the_page(tmp_path: Path) -> None:
    run = write_run(str(tmp_path), GROUPS)
    folder = Path(run.folder_url.removeprefix("file://"))
    contents = []
    for _ in range(2):
        make_report(run.manifest, run.config, 0, {})
        contents.append({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 6


def test_page_comes_last(tmp_path: Path) -> None:
    run = write_run(str(tmp_path), GROUPS)
    make_report(run.manifest, run.config, 0, {})
    folder = Path(run.folder_url.removeprefix("file://"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert max(files, key=lambda path: path.stat().st_mtime_ns).name == "index.html"


def test_page_is_missing_while_anything_else_is(tmp_path: Path) -> None:
    run = write_run(str(tmp_path), GROUPS)
    Path(run.manifest.run_url.removeprefix("file://"), "features.npy").unlink()
    with pytest.raises(FileNotFoundError):
        make_report(run.manifest, run.config, 0, {})
    assert not storage.exists(storage.join(run.folder_url, "index.html"))


def test_night_without_a_readable_image_has_a_report(tmp_path: Path) -> None:
    run = write_run(str(tmp_path), {}, unreadable={"x.jpg": "unreadable: empty file"})
    assert make_report(run.manifest, run.config, 0, {}).num_images == 1
    assert "No two images are within eps of each other." in run.read("index.html")
    assert "report.groups(" in run.read("data/groups.js")
