"""The commands `dedup evaluate` and `dedup export`: what they print and how they end."""

import json
from pathlib import Path

import pytest

from tests.flows.test_cli_acting import dedup
from tests.made_runs import MadeRun, make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(str(tmp_path_factory.mktemp("made")), {"a.png": 0, "b.png": 5, "c.png": 90})


@pytest.fixture
def of_run(made: MadeRun) -> tuple[str, ...]:
    return ("--run", made.run_id, "--workspace", made.workspace_url)


@pytest.fixture
def groups(tmp_path: Path) -> str:
    path = tmp_path / "groups.csv"
    path.write_text("path,group\na.png,x\nb.png,x\nc.png,y\nd.png,y\n")
    return str(path)


def test_evaluation_is_printed_with_what_was_left_out(groups: str, of_run: tuple[str, ...]) -> None:
    status, stdout, _ = dedup("evaluate", "--groups", groups, *of_run)
    lines = dict(line.split("  ", 1) for line in stdout.splitlines())
    assert status == 0
    assert lines["groups"].strip() == "3 images in 2 groups"
    assert "1 names are no image of the run" in lines["not scored"]
    assert lines["adjusted Rand index"].strip().startswith("1.000")
    assert lines["remove"].strip() == "1 of 3"


def test_json_and_plot_of_a_sweep(groups: str, of_run: tuple[str, ...], tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    arguments = ("--groups", groups, "--plot", str(plot), "--json")
    status, stdout, _ = dedup("evaluate", *of_run, *arguments)
    found = json.loads(stdout)
    assert status == 0
    assert found["scores"]["f1"]["value"] == 1.0
    assert found["scores"] in found["sweep"]
    assert plot.read_text().startswith("<svg xmlns=")
    status, stdout, _ = dedup("evaluate", "--groups", groups, "--sweep", *of_run)
    assert status == 0
    assert "\n0.05  * 1.000" in stdout


def test_exports_are_written_where_they_are_asked_for(made: MadeRun, tmp_path: Path) -> None:
    run = (made.run_id, "--workspace", made.workspace_url)
    for option, name, file in (
        ("--csv", "run.csv", "run.csv"),
        ("--coco", "coco.json", "coco.json"),
        ("--fiftyone", "dataset", "dataset/metadata.json"),
    ):
        status, stdout, _ = dedup("export", *run, option, str(tmp_path / name))
        assert (status, stdout) == (0, f"3 images  file://{tmp_path / name}\n")
        assert (tmp_path / file).is_file()


def test_one_format_is_written_at_a_time(made: MadeRun) -> None:
    run = (made.run_id, "--workspace", made.workspace_url)
    for formats in ((), ("--csv", "a", "--coco", "b")):
        status, _, stderr = dedup("export", *run, *formats)
        assert status == 2
        assert "give one of --fiftyone FOLDER, --csv FILE, --coco FILE" in stderr


def test_failures_are_one_clear_error(
    made: MadeRun, of_run: tuple[str, ...], tmp_path: Path
) -> None:
    groups = str(tmp_path / "groups.csv")
    status, _, stderr = dedup("evaluate", "--groups", groups, *of_run)
    assert (status, stderr) == (
        1,
        f"error: expected a CSV file of groups, found nothing: file://{groups}\n",
    )
    run = (made.run_id, "--workspace", made.workspace_url)
    (tmp_path / "file").touch()
    status, _, stderr = dedup("export", *run, "--csv", str(tmp_path / "file/run.csv"))
    assert status == 1
    assert stderr.startswith("error: cannot write ")
