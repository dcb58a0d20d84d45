"""`dedup library prune` as somebody types it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks import storage
from tasks.library import not_empty, segment_names
from tasks.schemas import LIBRARY


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["library", "prune", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    row = {
        "image_id": "a",
        "url": "file:///a.jpg",
        "size_bytes": 1,
        "etag": "e",
        "camera": "",
        "captured_at": 0,
        "sha256": "ab",
        "feature": np.zeros(512, np.float32),
    }
    name = "000001-monday-0123456789abcdef.parquet"
    storage.publish_table(f"{tmp_path}/library/f/{name}", pa.Table.from_pylist([row], LIBRARY))
    return tmp_path


def test_says_first_and_does_when_told(workspace: Path) -> None:
    options = ("--workspace", workspace, "--older-than", "90d")

    status, said = invoke(*options)
    assert status == 0
    assert "1 images of 1 nights would leave the library\nNothing was changed" in said
    assert len(segment_names(f"{workspace}/library/f")) == 1

    status, said = invoke(*options, "--execute")
    assert (status, "1 images of 1 nights left the library\n" in said) == (0, True)
    assert not_empty(segment_names(f"{workspace}/library/f")) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "expected --older-than, --partition or --gone, found none of them"),
        (("--older-than", "soon"), "--older-than: expected a duration such as 90s"),
        (("--partition", "("), "--partition: not a regular expression"),
    ],
)
def test_wrong_usage_is_refused(workspace: Path, options: tuple[str, ...], complaint: str) -> None:
    status, said = invoke("--workspace", workspace, *options)
    assert (status, complaint in said) == (2, True)
    assert len(segment_names(f"{workspace}/library/f")) == 1
