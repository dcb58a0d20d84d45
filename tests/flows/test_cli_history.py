"""`dedup history` as somebody types it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli_history import COLUMNS, sparkline
from tasks import storage
from tasks.summary import Alert
from tests.written_summaries import START, write_apply, write_summary


def invoke(workspace: object, *arguments: object) -> tuple[int, str]:
    said = ["history", "--workspace", str(workspace), *map(str, arguments)]
    result = CliRunner().invoke(app, said)
    return result.exit_code, result.output


def history_of(workspace: object, *arguments: object) -> dict[str, Any]:
    status, said = invoke(workspace, "--json", *arguments)
    assert status == 0, said
    known: dict[str, Any] = json.loads(said)
    return known


def nights_of(workspace: object, *arguments: object) -> list[str]:
    return [night["run_id"][:10] for night in history_of(workspace, *arguments)["nights"]]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Three usual nights, of which the second was decided twice, and one of another source."""
    for day in range(3):
        write_summary(str(tmp_path), day)
    write_summary(str(tmp_path), 1, run_id="2026-03-02-again", executed_at=START.replace(day=20))
    write_summary(str(tmp_path), 0, run_id="incoming-1", source_url="/incoming")
    return tmp_path


def test_nights_are_a_table_with_what_they_have_in_common_below(tmp_path: Path) -> None:
    for day, images in enumerate((100, 120, 110)):
        write_summary(str(tmp_path), day, num_images=images)
    alert = Alert(name="drift", message="far")
    changes = {"alerts": [alert, alert], "is_complete": False, "num_images": 11_000}
    run_id = write_summary(str(tmp_path), 3, **changes, num_unreadable=2_200).run_id
    write_apply(str(tmp_path), run_id, ended={"done": "58", "left": "2"})

    status, said = invoke(tmp_path)

    assert status == 0
    lines = said.splitlines()
    assert lines[0] == "s3://cameras/*"
    assert lines[1].split() == list(COLUMNS)
    assert lines[2].split() == [
        *("2026-03-01", "03:00", "100", "80", "39", "60", "60.6%", "1.0%", "0.0200", "1.0000"),
        *("40", "0.50", "yes", "-", "-", "2026-03-01-0000000000000000"),
    ]
    assert lines[5].split()[2:] == [
        *("11,000", "80", "39", "60", "60.6%", "20.0%", "0.0200", "1.0000", "40", "0.50", "NO"),
        *("quarantine", "58,", "2", "left", "drift", "2026-03-04-0000000000000003"),
    ]
    assert [" ".join(line.split()) for line in lines[6:]] == [
        "images 11,000 median 110 of 3 +9900.0% ▁▁▁█",
        "share removed 60.6% median 60.6% of 3 +0.0 pp ▄▄▄▄",
        "unreadable share 20.0% median 0.9% of 3 +19.1 pp ▁▁▁█",
        "mean nearest distance 0.0200 median 0.0200 of 3 +0.0% ▄▄▄▄",
        "seconds per new image 0.50 median 0.50 of 3 +0.0% ▄▄▄▄",
        "",
    ]


def test_last_decision_about_each_night_is_shown(workspace: Path) -> None:
    assert nights_of(workspace) == ["incoming-1", "2026-03-01", "2026-03-02", "2026-03-03"]
    runs = [night["run_id"] for night in history_of(workspace)["nights"]]
    assert runs[2] == "2026-03-02-again"


def test_all_shows_every_run(workspace: Path) -> None:
    assert nights_of(workspace, "--all") == [
        *("incoming-1", "2026-03-01", "2026-03-02", "2026-03-02", "2026-03-03")
    ]


def test_last_is_of_each_source(workspace: Path) -> None:
    assert nights_of(workspace, "--last", 1) == ["incoming-1", "2026-03-03"]
    (images, *_) = history_of(workspace, "--last", 1)["trends"]["s3://cameras/*"]
    assert images == {
        "measure": "num_images",
        "latest": 100,
        "earlier": [100.0, 100.0],
        "median": 100.0,
    }


def test_source_is_a_pattern(workspace: Path) -> None:
    assert nights_of(workspace, "--source", "^/inc") == ["incoming-1"]
    assert invoke(workspace, "--source", "nowhere")[1] == "no nights\n"


def test_first_night_has_nothing_to_compare_with(workspace: Path) -> None:
    said = invoke(workspace, "--source", "incoming")[1]
    assert said.count("no night before it to compare with") == 5


def test_damaged_summary_is_a_line(workspace: Path) -> None:
    storage.publish_bytes(f"{workspace}/runs/bad\n\x1b[31m/summary.json", b"{")
    status, said = invoke(workspace, "--last", 1)
    assert status == 0
    assert said.splitlines()[-1].startswith(r"'bad\n\x1b[31m': ")
    assert "\x1b" not in said
    assert list(history_of(workspace)["problems"]) == ["bad\n\x1b[31m"]


def test_apply_that_was_stopped_says_so(workspace: Path) -> None:
    write_apply(str(workspace), "incoming-1")
    assert "quarantine: not ended" in invoke(workspace)[1]


def test_empty_workspace_has_no_nights(tmp_path: Path) -> None:
    assert invoke(tmp_path) == (0, "no nights\n")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--source", "("), "--source: not a regular expression"),
        (("--last", "0"), "--last"),
        (("--workspace", "s3://user:secret@bucket"), "the URL carries credentials"),
    ],
)
def test_wrong_usage_is_refused(tmp_path: Path, options: tuple[str, ...], complaint: str) -> None:
    status, said = invoke(tmp_path, *options)
    assert (status, complaint in said) == (2, True)
    assert "secret" not in said


def test_help_explains_every_column() -> None:
    said = " ".join(CliRunner().invoke(app, ["history", "--help"]).output.split())
    for name in COLUMNS:
        assert f"{name}: " in said


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([1.0], "▄"), ([0.0, 7.0], "▁█"), ([1.0, 2.0, 3.0, 8.0], "▁▂▃█")],
)
def test_sparkline_goes_from_the_smallest_to_the_largest(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars
