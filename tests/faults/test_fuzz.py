"""Rubbish for every reader: refused with a clear error or read as it was, and never acted on."""

import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from botocore.exceptions import BotoCoreError

from config import ActingSettings, ApplyConfig, ConfigError, load_apply_config, load_config
from flows.acting import apply_manifest, purge_quarantine, undo_apply
from tasks import storage
from tasks.errors import DedupError
from tasks.journal import Entry, Head, Segment, parse_segment, read_journal, to_lines
from tasks.manifests import read_manifest
from tasks.schemas import FEATURE_DIM, FEATURES
from tests.written_nights import WrittenNight, write_night

FEW = pytest.param(60, id="few")
ACTING = ActingSettings(workers=2, lock_seconds=60)
SEED = 7

NASTY_TEXTS = (
    *("", ".", "..", "/", "//", "../..", "a/../../b", "/etc/passwd", "file:///etc/passwd"),
    *("s3://bucket/key", "\n", "\r\n", '"', "'", "`$(x)`", "\u202egpj.exe", "\u2028", "\0"),
    *("\ud7ff", "🙂" * 64, "x" * 255, "x" * 5_000, "NaN", "-1", "null", "%2e%2e/", "a?b#c", "~"),
)
NASTY_NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, -(2**63), 10**18)
NASTY_FLOATS = (0.0, -0.0, -1.0, 2.5, 1e38, float("nan"), float("inf"), float("-inf"))


def many(number: int) -> Any:
    return pytest.param(number, id=str(number), marks=pytest.mark.faults)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, insert or drop some bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + rng.randint(1, 64)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randint(1, 64))
        elif kind == 4:
            data[at : at + 8] = rng.choice([b"\0" * 8, b"\xff" * 8])
        else:
            data[at:at] = data[at : at + rng.randint(1, 64)]
    return bytes(data)


def nasty_value(value: Any, rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return None
    if isinstance(value, str) or value is None:
        text = rng.choice(NASTY_TEXTS)
        return text if value is None or rng.random() < 0.5 else f"{value}{text}"
    return rng.choice(NASTY_FLOATS if isinstance(value, float) else NASTY_NUMBERS)


def refused_or(read: Callable[[], Any]) -> Any:
    """The result, or None when the input was refused by an error that the commands explain."""
    try:
        return read()
    except (DedupError, ConfigError, OSError, BotoCoreError):
        return None


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WrittenNight:
    monkeypatch.setattr("tasks.apply07_carry_out.RETRY_DELAYS_SECONDS", ())
    return write_night(
        str(tmp_path), {"a/keeper.jpg": ["a/1.jpg", "a/2.jpg"], "b/keeper.jpg": ["b/1.jpg"]}
    )


def path_of(url: str) -> Path:
    return Path(url.removeprefix("file://"))


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def images_left(written: WrittenNight) -> Counter[bytes]:
    """The content of every image in the source and in quarantine."""
    quarantine = path_of(written.workspace_url) / "quarantine"
    source = files_below(path_of(written.source_url))
    return Counter([*source.values(), *files_below(quarantine).values()])


@pytest.mark.parametrize("number", [FEW, many(4_000)])
def test_damaged_manifest_is_refused_or_says_the_same(written: WrittenNight, number: int) -> None:
    rng = random.Random(SEED)
    content = storage.read_bytes(written.manifest_url)
    path = path_of(written.manifest_url)
    for _ in range(number):
        path.write_bytes(damaged(content, rng))
        manifest = refused_or(lambda: read_manifest(written.manifest_url))
        if manifest is not None:
            assert manifest.table.to_pylist() == written.rows
    assert files_below(path_of(written.source_url)) == written.contents


@pytest.mark.parametrize("number", [FEW, many(2_000)])
def test_hostile_manifest_loses_no_image(written: WrittenNight, number: int) -> None:
    rng = random.Random(SEED)
    outside = path_of(written.source_url).parent / "outside.jpg"
    outside.write_bytes(b"none of your business")
    for _ in range(number):
        rows = [dict(row) for row in written.rows]
        for _ in range(rng.randint(1, 3)):
            row = rng.choice(rows)
            kind = rng.randrange(5)
            name = rng.choice(list(row))
            if kind <= 2:
                row[name] = nasty_value(row[name], rng)
            elif kind == 3:
                row[name] = rng.choice(rows)[name]
            else:
                rows.append(dict(row))
        metadata = {}
        if rng.random() < 0.3:
            name = rng.choice(["run_id", "source_url", "eps", "config", "is_complete", "recall"])
            metadata[name] = rng.choice(NASTY_TEXTS).encode("utf-8", "replace").decode()
        try:
            night = written.rewrite(rows, **metadata)
        except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
            continue  # no Parquet file can say that
        config = ApplyConfig.model_validate(
            {
                "manifest_url": night.manifest_url,
                "workspace_url": night.workspace_url,
                "execute": True,
                "acting": ACTING,
            }
        )
        summary = refused_or(lambda config=config: apply_manifest(config))
        if summary is not None:
            refused_or(
                lambda summary=summary: undo_apply(summary.apply_id, written.workspace_url, ACTING)
            )
        assert images_left(written) == Counter(written.contents.values())
        assert files_below(path_of(written.source_url)) == written.contents
        assert outside.read_bytes() == b"none of your business"


@pytest.mark.parametrize("number", [FEW, many(2_000)])
def test_damaged_journal_is_refused(written: WrittenNight, number: int) -> None:
    rng = random.Random(SEED)
    summary = apply_manifest(
        ApplyConfig(manifest_url=written.manifest_url, execute=True, acting=ACTING)
    )
    (folder,) = path_of(written.workspace_url).glob("runs/*/applies/*")
    segments = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    for _ in range(number):
        path = rng.choice(list(segments))
        content = damaged(segments[path], rng)
        path.write_bytes(content)
        said = refused_or(lambda path=path: parse_segment(path.read_bytes(), str(path)))
        if said is not None:  # a newline less at the end says the same
            assert said == parse_segment(segments[path], str(path))
        else:
            assert summary.apply_id is not None
            with pytest.raises(DedupError):
                undo_apply(summary.apply_id, written.workspace_url, ACTING)
        path.write_bytes(segments[path])
    assert images_left(written) == Counter(written.contents.values())


@pytest.mark.parametrize("number", [FEW, many(1_500)])
def test_hostile_journal_moves_nothing_from_or_to_elsewhere(
    written: WrittenNight, number: int
) -> None:
    rng = random.Random(SEED)
    outside = path_of(written.source_url).parent / "outside.jpg"
    outside.write_bytes(b"none of your business")
    summary = apply_manifest(
        ApplyConfig(manifest_url=written.manifest_url, execute=True, acting=ACTING)
    )
    assert summary.apply_id is not None
    (folder,) = path_of(written.workspace_url).glob("runs/*/applies/*")
    segments = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    before = images_left(written)
    for _ in range(number):
        path = rng.choice(list(segments))
        parsed = parse_segment(segments[path], str(path))
        lines = [json.loads(record.model_dump_json()) for record in (parsed.head, *parsed.entries)]
        for _ in range(rng.randint(1, 2)):
            record = rng.choice(lines)
            while True:
                name = rng.choice(list(record))
                if isinstance(record[name], dict) and record[name] and rng.random() < 0.8:
                    record = record[name]
                    continue
                record[name] = nasty_value(record[name], rng)
                break
        try:
            head = Head.model_validate_json(json.dumps(lines[0]))
            entries = tuple(Entry.model_validate_json(json.dumps(line)) for line in lines[1:])
            content = to_lines(Segment(head, entries))
        except ValueError:
            continue
        path.write_bytes(content)
        refused_or(lambda: purge_nothing(written))
        done = refused_or(lambda: undo_apply(str(summary.apply_id), written.workspace_url, ACTING))
        for extra in set(folder.iterdir()) - set(segments):
            extra.unlink()
        assert outside.read_bytes() == b"none of your business"
        assert images_left(written) == before
        path.write_bytes(segments[path])
        if done is not None:
            # Some undos are right ones: apply once more.
            for extra in folder.iterdir():
                extra.unlink()
            folder.rmdir()
            assert files_below(path_of(written.source_url)).keys() <= written.contents.keys()
            again = apply_manifest(
                ApplyConfig(manifest_url=written.manifest_url, execute=True, acting=ACTING)
            )
            assert again.apply_id == summary.apply_id
            segments = {path: path.read_bytes() for path in sorted(folder.iterdir())}


def purge_nothing(written: WrittenNight) -> object:
    from datetime import timedelta

    return purge_quarantine(
        written.workspace_url,
        timedelta(days=30),
        execute=True,
        allow_orphans=False,
        acting=ACTING,
    )


@pytest.mark.parametrize("number", [FEW, many(1_500)])
def test_rubbish_config_is_refused_or_valid(tmp_path: Path, number: int) -> None:
    rng = random.Random(SEED)
    valid = yaml.safe_dump(
        {
            "source_url": "/a",
            "workspace_url": "/b",
            "neighbors": {"eps": 0.1},
            "source": {"partition_by": "^([^/]+)/", "suffixes": [".jpg"]},
            "execution": {"workers": 3},
            "apply": {"action": "quarantine", "guards": {"max_manifest_age": "3d"}},
        }
    )
    profile = tmp_path / "profile.yaml"
    for _ in range(number):
        if rng.random() < 0.5:
            profile.write_bytes(damaged(valid.encode(), rng))
        else:
            content = yaml.safe_load(valid)
            section = rng.choice(["neighbors", "source", "execution", "apply"])
            value = rng.choice([*NASTY_TEXTS, *NASTY_NUMBERS, *NASTY_FLOATS, None, [], {}, [[]]])
            if rng.random() < 0.5:
                content[section] = value
            else:
                content[section][rng.choice(list(content[section]))] = value
            try:
                profile.write_text(yaml.safe_dump(content))
            except (ValueError, yaml.YAMLError):
                continue
        refused_or(lambda: load_config(profile, {}))
        refused_or(lambda: load_apply_config(profile, {"manifest_url": "/m.parquet"}))


@pytest.mark.parametrize("number", [FEW, many(1_500)])
def test_damaged_features_are_refused_or_read_as_they_were(tmp_path: Path, number: int) -> None:
    rng = random.Random(SEED)
    row = {
        "image_id": "i",
        "url": "file:///a.jpg",
        "size_bytes": 3,
        "etag": "e",
        "sha256": "0" * 64,
        "width": 8,
        "height": 8,
        "sharpness": 1.0,
        "feature": np.random.default_rng(SEED).random(FEATURE_DIM, np.float32).tolist(),
        "error": None,
    }
    table = pa.Table.from_pylist([row | {"image_id": f"i{n}"} for n in range(5)], schema=FEATURES)
    url = f"{tmp_path}/features.parquet"
    storage.publish_table(url, table)
    content = Path(url).read_bytes()
    for turn in range(number):
        Path(url).write_bytes(damaged(content, rng))
        read = (read_whole, read_in_groups)[turn % 2]
        found = refused_or(lambda: read(url))  # noqa: B023 (called at once)
        if found is not None:
            values = found.select(["image_id", "feature"]).to_pylist()
            assert values == table.select(["image_id", "feature"]).to_pylist()


def read_whole(url: str) -> pa.Table:
    return storage.read_table(url, FEATURES)


def read_in_groups(url: str) -> pa.Table:
    """As the readers of a feature store do, a column first and the others after it."""
    with storage.open_table(url, FEATURES) as table:
        for group in range(table.num_groups):
            table.read(group, ["image_id"])
        return pa.concat_tables(
            table.read(group, FEATURES.names) for group in range(table.num_groups)
        )


def test_parquet_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name, column in {
        "text": pa.array(["a"]),
        "nested": pa.array([[{"a": 1}]]),
        "dictionary": pa.array(["a"]).dictionary_encode(),
        "null": pa.nulls(3),
    }.items():
        sink = io.BytesIO()
        pq.write_table(pa.table(dict.fromkeys(FEATURES.names, column)), sink)
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(sink.getvalue())
        with pytest.raises(DedupError, match=r"column (image_id|size_bytes) is"):
            storage.read_table(str(path), FEATURES)


def test_empty_journal_folder_is_no_apply(written: WrittenNight) -> None:
    with pytest.raises(DedupError, match="no such apply"):
        undo_apply("night-0123456789abcdef-quarantine-01234567-1", written.workspace_url, ACTING)
    with pytest.raises(DedupError, match="expected an apply id"):
        undo_apply("../../etc", written.workspace_url, ACTING)
    assert read_journal(f"{written.workspace_url}/none", "x").heads == []
