"""The benchmark of acting runs and counts right."""

from pathlib import Path

import pytest

from benchmarks.acting import main


def test_all_images_go_and_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(str(tmp_path), 90)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(",")[0] for line in lines] == [
        "quarantine: 98 images",
        "undo: 98 images",
    ]
