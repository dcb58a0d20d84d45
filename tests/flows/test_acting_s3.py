"""Acting on S3 as it is met: strangers' credentials, versions, TLS, stores without conditions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import ActingSettings, ApplyConfig
from flows.acting import apply_manifest, undo_apply
from tasks import storage
from tasks.errors import GuardError
from tests.rclone_server import run_rclone_server
from tests.s3_server import S3Server, run_s3_server
from tests.written_nights import WrittenNight, write_night

DEDUP = str(Path(sys.executable).parent / "dedup")
GROUPS = {"a/keeper.jpg": ["a/1.jpg", "a/2.jpg"], "b/keeper.jpg": ["b/1.jpg"]}
ACTING = ActingSettings(workers=4, lock_seconds=30)


def become(monkeypatch: pytest.MonkeyPatch, client: dict[str, str]) -> None:
    for name, value in client.items():
        monkeypatch.setenv(name, value)
    storage._filesystem.cache_clear()


def config(night: WrittenNight, **guards: bool) -> ApplyConfig:
    return ApplyConfig.model_validate(
        {
            "manifest_url": night.manifest_url,
            "execute": True,
            "acting": ACTING,
            "guards": guards,
        }
    )


def tree(night: WrittenNight) -> dict[str, bytes]:
    return {
        file.relative_path: storage.read_bytes(file.url)
        for file in storage.list_files(night.source_url)
    }


def round_trip(night: WrittenNight, **guards: bool) -> None:
    applied = apply_manifest(config(night, **guards))
    assert (applied.num_done, applied.num_problems) == (3, 0)
    assert sorted(tree(night)) == night.kept()
    assert applied.apply_id is not None
    undone = undo_apply(applied.apply_id, night.workspace_url, ACTING)
    assert (undone.num_done, undone.num_problems) == (3, 0)
    assert tree(night) == night.contents


def command(night: WrittenNight) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [DEDUP, "apply", night.manifest_url, "--delete", "--execute"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )


@pytest.mark.parametrize(
    ("client", "complaint"),
    [
        ("reader", "cannot lock"),
        ("stranger", "not allowed to read"),
    ],
)
def test_credentials_that_may_not_are_one_clear_error(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch, client: str, complaint: str
) -> None:
    night = write_night(f"{s3_url}/place", GROUPS)
    clients = {
        "reader": s3_server.reader,
        "stranger": s3_server.admin | {"AWS_SECRET_ACCESS_KEY": "wrong-secret-of-mine"},
    }
    become(monkeypatch, clients[client])
    failed = command(night)
    become(monkeypatch, s3_server.admin)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert complaint in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "secret" not in failed.stdout + failed.stderr
    assert tree(night) == night.contents


def test_missing_bucket_is_one_clear_error(s3_url: str) -> None:
    failed = subprocess.run(
        [DEDUP, "apply", "s3://no-such-bucket/runs/x/manifest.parquet", "--delete", "--execute"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: expected a Parquet file, found nothing")


def test_round_trip_on_a_versioned_bucket(s3_url: str) -> None:
    bucket = s3_url.removeprefix("s3://")
    storage.filesystem(s3_url)[0].call_s3(
        "put_bucket_versioning", Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    round_trip(write_night(f"{s3_url}/place", GROUPS))


def test_round_trip_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_s3_server(tmp_path, tls=True) as server:
        become(monkeypatch, server.admin)
        storage.filesystem("s3://")[0].mkdir("secure")
        round_trip(write_night("s3://secure/place", GROUPS))
    storage._filesystem.cache_clear()


def test_store_that_ignores_conditions_is_refused_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket").mkdir()
    with run_rclone_server(tmp_path) as server:
        become(monkeypatch, server.client)
        night = write_night("s3://bucket/place", GROUPS)
        with pytest.raises(GuardError, match=r"ignores conditional writes.*--allow-unlocked"):
            apply_manifest(config(night))
        assert tree(night) == night.contents
        round_trip(night, allow_unlocked=True)
    storage._filesystem.cache_clear()
