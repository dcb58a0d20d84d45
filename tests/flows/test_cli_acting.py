"""The commands `dedup apply`, `undo`, `purge` and `approve`: what they print and how they end."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks import storage
from tests.written_nights import WrittenNight, write_night

RUN = "night-0123456789abcdef"


@pytest.fixture
def written(tmp_path: Path) -> WrittenNight:
    return write_night(str(tmp_path), {"a/keeper.jpg": ["a/1.jpg", "a/2.jpg"]}, noise=["n.jpg"])


def dedup(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def num_images(night: WrittenNight) -> int:
    return len(storage.list_files(night.source_url))


def test_apply_is_a_dry_run_by_default(written: WrittenNight) -> None:
    status, stdout, _ = dedup("apply", written.manifest_url)
    assert status == 0
    assert "quarantine (dry run)" in stdout
    assert "'a/1.jpg' (within eps, distance 0.031250, keeper 'a/keeper.jpg')" in stdout
    assert "Nothing was changed: that takes --execute." in stdout
    assert num_images(written) == 4


def test_round_trip_prints_json(written: WrittenNight) -> None:
    arguments = ("apply", RUN, "--workspace", written.workspace_url, "--delete", "--execute")
    status, stdout, _ = dedup(*arguments, "--json")
    applied = json.loads(stdout)
    assert status == 0
    assert applied["apply_id"].startswith(f"{RUN}-quarantine-")
    counts = ("num_done", "num_skipped", "num_failed", "bytes_freed")
    assert [applied[name] for name in counts] == [2, 0, 0, 2 * len(b"image a/1.jpg") * 20]
    assert num_images(written) == 2
    arguments = ("undo", applied["apply_id"], "--workspace", written.workspace_url, "--json")
    status, stdout, _ = dedup(*arguments)
    assert (status, json.loads(stdout)["num_done"]) == (0, 2)
    assert num_images(written) == 4


def test_images_left_alone_make_a_failed_exit_and_are_listed(written: WrittenNight) -> None:
    path = Path(written.url("a/1.jpg").removeprefix("file://"))
    path.write_bytes(b"changed")
    status, stdout, stderr = dedup("apply", written.manifest_url, "--delete", "--execute")
    assert status == 1
    assert "refused" in stdout
    assert "'a/1.jpg': 'the image changed: 7 bytes" in stdout
    assert "1 images were left alone" in stderr
    assert num_images(written) == 3


def test_copy_of_the_unique_images(written: WrittenNight, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    arguments = ("--copy-to", str(copies), "--only", "keep", "--execute")
    assert dedup("apply", written.manifest_url, *arguments)[0] == 0
    found = sorted(str(path.relative_to(copies)) for path in copies.rglob("*.jpg"))
    assert found == ["a/keeper.jpg", "n.jpg"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--delete", "--copy-to", "/x"), "--delete and --copy-to exclude each other"),
        (("--permanent",), "--permanent goes with --delete"),
        (("--execute",), "--execute needs --delete or --copy-to URL"),
        (("--delete", "--only", "keep"), "only: keep goes with action: copy"),
        (("--max-manifest-age", "soon"), "expected a duration such as 90s"),
        (("--max-removed-fraction", "2"), "guards.max_removed_fraction"),
        (("--workers", "0"), "acting.workers"),
    ],
)
def test_wrong_usage_is_told_apart(
    written: WrittenNight, arguments: tuple[str, ...], complaint: str
) -> None:
    status, _, stderr = dedup("apply", written.manifest_url, *arguments)
    assert (status, complaint in stderr) == (2, True)
    assert num_images(written) == 4


def test_profile_shapes_an_apply_but_never_executes_it(
    written: WrittenNight, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("apply: {execute: true, guards: {max_removed_fraction: 0.1}}\n")
    status, stdout, _ = dedup("apply", written.manifest_url, "--config", str(profile))
    assert status == 0
    assert "at most 10.00% (NOT met)" in stdout
    assert num_images(written) == 4
    arguments = ("--config", str(profile), "--delete", "--execute")
    status, _, stderr = dedup("apply", written.manifest_url, *arguments)
    assert status == 1
    assert "--max-removed-fraction lets it pass" in stderr
    assert num_images(written) == 4


def test_approve_lets_an_apply_pass_that_needs_it(written: WrittenNight, tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("apply: {approval: required}\n")
    apply = ("apply", written.manifest_url, "--delete", "--execute", "--config", str(profile))
    status, _, stderr = dedup(*apply)
    assert status == 1
    assert f"dedup approve {RUN}" in stderr
    workspace = ("--workspace", written.workspace_url)
    assert dedup("approve", RUN, *workspace, "--reject", "--comment", "no")[0] == 0
    status, _, stderr = dedup(*apply)
    assert status == 1
    assert "was rejected by" in stderr
    status, stdout, _ = dedup("approve", RUN, *workspace)
    assert (status, stdout) == (0, f"approved  {written.manifest_url}\n")
    assert dedup(*apply)[0] == 0
    assert num_images(written) == 2


def test_purge_is_a_dry_run_by_default(written: WrittenNight) -> None:
    dedup("apply", written.manifest_url, "--delete", "--execute")
    workspace = ("--workspace", written.workspace_url)
    status, stdout, _ = dedup("purge", *workspace, "--older-than", "30d")
    assert status == 0
    assert "purge (dry run)" in stdout
    assert dedup("purge", *workspace, "--older-than", "soon")[0] == 2
    assert dedup("purge", *workspace, "--older-than", "30d", "--execute")[0] == 0


def test_damaged_manifest_is_one_clear_error(written: WrittenNight) -> None:
    path = Path(written.manifest_url.removeprefix("file://"))
    path.write_bytes(path.read_bytes()[:-20])
    status, _, stderr = dedup("apply", written.manifest_url, "--delete", "--execute")
    assert status == 1
    assert stderr.startswith("error: expected a Parquet file, found something else")
    assert "Traceback" not in stderr
