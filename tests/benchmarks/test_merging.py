"""The benchmark of merging reads the same library before and after."""

import re
from pathlib import Path

import pytest

from benchmarks.merging import main


def test_same_images_are_read_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(str(tmp_path), 3)
    lines = [re.sub(r"\d+\.\d\d s", "_ s", line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "apart: 3 segments named in _ s, 90 images read in _ s",
        "merged: 3 -> 1 files in _ s",
        "merged: 3 segments named in _ s, 90 images read in _ s",
    ]
