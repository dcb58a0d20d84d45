"""The journal of an apply: nothing is forgotten, nothing damaged is believed."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import storage
from tasks.errors import ArtifactError, LockLostError
from tasks.journal import (
    JOURNAL_VERSION,
    Entry,
    Head,
    ImageRecord,
    Journal,
    Operation,
    Segment,
    applies_url,
    current_journal,
    journal_url,
    list_applies,
    parse_segment,
    read_journal,
    removed_by_others,
    to_lines,
)
from tests.one_bucket import one_bucket
from tests.s3_server import S3Server

RUN = "night-0123456789abcdef"
NAME = f"{RUN}-quarantine-01234567"
FIRST = f"{NAME}-1"
AT = datetime(2026, 1, 1, 2, tzinfo=UTC)

ODD_NAMES = [
    "new\nline.jpg",
    "return\rfeed\r\n.jpg",
    "line\N{LINE SEPARATOR}separator.jpg",
    "paragraph\N{PARAGRAPH SEPARATOR}.jpg",
    "next\N{NEXT LINE}line\v\f\x1c\x1d\x1e.jpg",
    "quotes \"'`\\.jpg",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.a",
    "nul \0 and bell \a",
    '"}\n{"sha256": "0"}',
    "日本 \N{FACE WITH TEARS OF JOY}.jpg",
    "",
]


def image(name: str) -> ImageRecord:
    return ImageRecord(url=f"s3://bucket/night/{name}", size_bytes=3, etag="e", sha256="0" * 64)


def entry(name: str, **changes: Any) -> Entry:
    known: dict[str, Any] = {
        "image": image(name),
        "to_url": f"s3://bucket/quarantine/{name}",
        "keeper": image("keeper.jpg"),
        "rule": "within eps, distance 0.031250",
    }
    return Entry(**known | changes)


def done(name: str, **changes: Any) -> Entry:
    return entry(name, **{"status": "done", "at": AT} | changes)


def segment(*entries: Entry, **changes: Any) -> Segment:
    head: dict[str, Any] = {
        "journal_version": JOURNAL_VERSION,
        "apply_id": FIRST,
        "number": 0,
        "operation": "quarantine",
        "kind": "intents",
        "at": AT,
        "who": "anna@north, process 7",
        "token": "0123456789abcdef",
        "details": {},
    }
    return Segment(Head(**head | changes), entries)


@pytest.fixture(scope="module")
def bucket_url(s3_server: S3Server) -> Iterator[str]:
    with one_bucket(s3_server) as url:
        yield url


@pytest.fixture
def s3_url(bucket_url: str) -> str:
    """What `place` begins with: a folder of its own for every test."""
    return f"{bucket_url}/{uuid4().hex}"


@pytest.fixture
def folder(place: str) -> str:
    """Where the journals of the run lie."""
    return applies_url(storage.absolute_url(place), RUN)


@pytest.fixture
def local_folder(tmp_path: Path) -> str:
    return applies_url(storage.absolute_url(str(tmp_path)), RUN)


def path_of(url: str) -> Path:
    return Path(url.removeprefix("file://"))


def open_journal(folder: str, apply_id: str = FIRST) -> Journal:
    return read_journal(storage.join(folder, apply_id), apply_id)


def written(folder: str, apply_id: str = FIRST, operation: Operation = "quarantine") -> Journal:
    """A journal of four segments: an apply that has removed two images."""
    journal = open_journal(folder, apply_id)
    journal.append(operation, "begin", details={"source_url": "s3://bucket/night"})
    journal.append(operation, "intents", [entry("a.jpg"), entry("b.jpg")])
    journal.append(operation, "outcomes", [done("a.jpg"), done("b.jpg")])
    journal.append(operation, "end", details={"done": "2"})
    return journal


def facts(journal: Journal) -> Any:
    operations: tuple[Operation, ...] = ("quarantine", "permanent", "copy", "undo", "purge")
    return (
        journal.url,
        journal.apply_id,
        journal.heads,
        {operation: journal.entries(operation) for operation in operations},
    )


class TestSegments:
    def test_are_lines_of_json_with_their_digest(self) -> None:
        lines = to_lines(segment(entry("a.jpg"), details={"source_url": "s3://b"})).split(b"\n")
        assert [sorted(json.loads(line))[0] for line in lines[:-1]] == ["apply_id", "at", "sha256"]
        assert lines[-1] == b""

    def test_never_change_their_form(self) -> None:
        # Journals must stay readable for as long as their images are in quarantine.
        lines = to_lines(segment(done("a.jpg", keeper=None, detail="x")))
        assert lines.decode() == (
            '{"journal_version":1,"apply_id":"night-0123456789abcdef-quarantine-01234567-1",'
            '"number":0,"operation":"quarantine","kind":"intents","at":"2026-01-01T02:00:00Z",'
            '"who":"anna@north, process 7","token":"0123456789abcdef","details":{}}\n'
            '{"image":{"url":"s3://bucket/night/a.jpg","size_bytes":3,"etag":"e",'
            f'"sha256":"{"0" * 64}"}},"to_url":"s3://bucket/quarantine/a.jpg","keeper":null,'
            '"rule":"within eps, distance 0.031250","status":"done","detail":"x",'
            '"at":"2026-01-01T02:00:00Z"}\n'
            '{"sha256": "166c5ab7dcab5b1d39d8ee4dbb623a576fbc72da5797e3d8b482823798328413"}\n'
        )

    @pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
    def test_come_back_as_they_were(self, name: str) -> None:
        before = segment(entry(name), done(name, detail=name), who=name, details={name: name})
        assert parse_segment(to_lines(before), "url") == before
        assert to_lines(before).count(b"\n") == 4

    @given(
        name=st.text(),
        detail=st.text(),
        size_bytes=st.integers(0, 2**63),
        status=st.sampled_from([None, "done", "already", "refused", "failed"]),
        details=st.dictionaries(st.text(), st.text(), max_size=3),
        has_keeper=st.booleans(),
    )
    def test_of_any_text_come_back_as_they_were(
        self,
        name: str,
        detail: str,
        size_bytes: int,
        status: Any,
        details: dict[str, str],
        has_keeper: bool,
    ) -> None:
        before = segment(
            entry(
                name,
                image=image(name).model_copy(update={"size_bytes": size_bytes}),
                keeper=image(name) if has_keeper else None,
                status=status,
                detail=detail,
            ),
            details=details,
        )
        assert parse_segment(to_lines(before), "url") == before

    def test_cut_off_anywhere_are_refused(self) -> None:
        content = to_lines(segment(entry("a.jpg")))
        # The last line break carries nothing.
        for length in range(len(content) - 1):
            with pytest.raises(ArtifactError, match=r"segment of a journal.*: the-url"):
                parse_segment(content[:length], "the-url")

    def test_with_any_bit_changed_are_refused(self) -> None:
        before = segment(entry("a.jpg"))
        content = to_lines(before)
        for position in range(len(content) - 1):
            for bit in (1, 32, 128):
                damaged = bytearray(content)
                damaged[position] ^= bit
                with pytest.raises(ArtifactError):
                    parse_segment(bytes(damaged), "url")

    def test_with_a_line_left_out_doubled_or_moved_are_refused(self) -> None:
        first, second, third, last = to_lines(segment(entry("a"), entry("b"))).splitlines()
        for lines in (
            [first, second, last],
            [second, third, last],
            [first, third, second, last],
            [first, second, second, third, last],
            [first, second, third],
            [first, second, third, last, last],
            [first, second, third, b"", last],
        ):
            with pytest.raises(ArtifactError):
                parse_segment(b"\n".join(lines) + b"\n", "url")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\n",
            b"\n\n",
            b"{}",
            b"null\nnull\n",
            b"[" * 100_000,
            b"\xff\xfe",
            b"not a journal at all\n",
            b"PAR1\x00\x00",
        ],
        ids=lambda content: repr(content[:12]),
    )
    def test_of_something_else_are_refused(self, content: bytes) -> None:
        with pytest.raises(ArtifactError, match="expected a segment of a journal"):
            parse_segment(content, "url")

    @pytest.mark.parametrize(
        "change",
        [
            lambda lines: [lines[0].replace('"number":0', '"number":"0"'), *lines[1:]],
            lambda lines: [lines[0].replace('"quarantine"', '"destroy"'), *lines[1:]],
            lambda lines: [lines[0].replace('"intents"', '"guesses"'), *lines[1:]],
            lambda lines: [lines[0][:-1] + ',"more":1}', *lines[1:]],
            lambda lines: [lines[0], lines[1].replace('"size_bytes":3', '"size_bytes":3.5')],
            lambda lines: [lines[0], lines[1].replace('"status":null', '"status":"gone"')],
            lambda lines: [lines[0], lines[1].replace('"rule"', '"rules"')],
            lambda lines: [lines[0], "null"],
            lambda lines: lines[1:],
            lambda lines: [lines[0], ""],
        ],
    )
    def test_with_a_right_digest_of_wrong_lines_are_refused(
        self, change: Callable[[list[str]], list[str]]
    ) -> None:
        content = signed(change(to_lines(segment(entry("a.jpg"))).decode().splitlines()[:-1]))
        with pytest.raises(ArtifactError, match="found something else: url"):
            parse_segment(content, "url")

    @pytest.mark.parametrize("version", [0, 2])
    def test_of_another_version_are_refused(self, local_folder: str, version: int) -> None:
        url = storage.join(local_folder, FIRST, "000000.jsonl")
        lines = to_lines(segment(journal_version=version)).decode().splitlines()[:-1]
        head = json.dumps(json.loads(lines[0]) | {"of_another_version": True})
        storage.publish_bytes(url, signed([head, *lines[1:]]))
        with pytest.raises(ArtifactError, match=f"journal has schema version {version}, expected"):
            open_journal(local_folder)


def signed(lines: list[str]) -> bytes:
    """Put the right digest under lines."""
    body = "\n".join(lines).encode()
    digest = json.dumps({"sha256": hashlib.sha256(body).hexdigest()})
    return body + b"\n" + digest.encode() + b"\n"


class TestJournals:
    def test_are_read_as_they_were_written(self, folder: str) -> None:
        journal = written(folder)
        for number in range(10):
            journal.append("undo", "intents", [entry(f"{number}.jpg")])
        assert facts(open_journal(folder)) == facts(journal)
        assert [head.number for head in journal.heads] == list(range(14))
        assert len({head.token for head in journal.heads}) == 14

    def test_are_folders_of_numbered_segments(self, local_folder: str) -> None:
        written(local_folder)
        names = [file.relative_path for file in storage.list_files(local_folder)]
        assert names == [f"{FIRST}/00000{number}.jsonl" for number in range(4)]

    def test_that_are_not_there_are_empty(self, folder: str) -> None:
        journal = open_journal(folder)
        assert (journal.heads, journal.num_images, journal.entries("quarantine")) == ([], 0, [])
        assert journal.has_begun("quarantine") is False
        assert journal.has_ended("quarantine") is False
        assert not storage.exists(folder)

    def test_keep_any_name(self, folder: str) -> None:
        journal = open_journal(folder)
        journal.append("quarantine", "intents", [entry(name) for name in ODD_NAMES])
        found = open_journal(folder).entries("quarantine")
        assert [entry.image.url for entry in found] == [image(name).url for name in ODD_NAMES]

    def test_go_on_where_they_ended(self, local_folder: str) -> None:
        written(local_folder)
        journal = open_journal(local_folder)
        journal.append("undo", "begin")
        assert [head.operation for head in open_journal(local_folder).heads[3:]] == [
            "quarantine",
            "undo",
        ]

    def test_pass_over_other_files(self, local_folder: str) -> None:
        journal = written(local_folder)
        for name in (".image-dedup.0123.tmp", "000004.jsonl.part", "README"):
            (path_of(journal.url) / name).write_bytes(b"{")
        assert facts(open_journal(local_folder)) == facts(journal)

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_with_a_missing_segment_are_refused(self, local_folder: str, number: int) -> None:
        journal = written(local_folder)
        fs, path = storage.filesystem(f"{journal.url}/00000{number}.jsonl")
        fs.rm_file(path)
        with pytest.raises(
            ArtifactError, match=f"expected segment {number} of {FIRST}, found {number + 1} of"
        ):
            open_journal(local_folder)

    def test_with_a_renumbered_segment_are_refused(self, local_folder: str) -> None:
        journal = written(local_folder)
        (path_of(journal.url) / "000003.jsonl").rename(path_of(journal.url) / "000004.jsonl")
        open_journal(local_folder)  # in order still, and each says itself which one it is
        (path_of(journal.url) / "000002.jsonl").rename(path_of(journal.url) / "000005.jsonl")
        with pytest.raises(ArtifactError, match=f"expected segment 2 of {FIRST}, found 3 of"):
            open_journal(local_folder)

    def test_with_a_doubled_segment_are_refused(self, local_folder: str) -> None:
        journal = written(local_folder)
        content = (path_of(journal.url) / "000003.jsonl").read_bytes()
        (path_of(journal.url) / "000004.jsonl").write_bytes(content)
        with pytest.raises(ArtifactError, match=f"expected segment 4 of {FIRST}, found 3 of"):
            open_journal(local_folder)

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]\n"])
    def test_with_a_damaged_segment_are_refused(self, local_folder: str, damage: bytes) -> None:
        journal = written(local_folder)
        storage.publish_bytes(f"{journal.url}/000002.jsonl", damage)
        with pytest.raises(ArtifactError, match=r"expected a segment .*/000002\.jsonl"):
            open_journal(local_folder)

    def test_of_another_apply_are_refused(self, local_folder: str) -> None:
        journal = written(local_folder)
        path_of(journal.url).rename(path_of(local_folder) / f"{NAME}-2")
        with pytest.raises(
            ArtifactError, match=f"expected segment 0 of {NAME}-2, found 0 of {FIRST}"
        ):
            open_journal(local_folder, f"{NAME}-2")

    def test_say_who_did_what_from_where(self, local_folder: str) -> None:
        journal = written(local_folder)
        assert journal.detail("source_url") == "s3://bucket/night"
        with pytest.raises(ArtifactError, match=f"to_folder.*{FIRST}"):
            journal.detail("to_folder")
        with pytest.raises(ArtifactError, match=f"{NAME}-2"):
            open_journal(local_folder, f"{NAME}-2").detail("source_url")


class TestTwoWriters:
    def test_second_one_is_stopped(self, folder: str) -> None:
        written(folder)
        first, second = open_journal(folder), open_journal(folder)
        first.append("undo", "begin")
        before = facts(second)
        with pytest.raises(LockLostError, match=r"somebody else has written .*/000004\.jsonl"):
            second.append("undo", "begin")
        assert facts(second) == before
        assert facts(open_journal(folder)) == facts(first)

    def test_of_many_one_goes_on(self, folder: str) -> None:
        journals = [open_journal(folder) for _ in range(6)]
        barrier = Barrier(len(journals))

        def begin(journal: Journal) -> bool:
            barrier.wait()
            try:
                journal.append("quarantine", "begin", [entry("a.jpg")])
            except LockLostError:
                return False
            return True

        with ThreadPoolExecutor(len(journals)) as pool:
            has_begun = list(pool.map(begin, journals))
        assert sum(has_begun) == 1
        assert facts(open_journal(folder)) == facts(journals[has_begun.index(True)])


class TestWhatIsKnownOfAnImage:
    def test_is_what_was_written_last(self, local_folder: str) -> None:
        journal = open_journal(local_folder)
        journal.append("quarantine", "intents", [entry("a.jpg"), entry("b.jpg")])
        journal.append("quarantine", "outcomes", [done("a.jpg")])
        for known in (journal, open_journal(local_folder)):
            assert known.num_images == 2
            assert known.last(image("a.jpg").url, "quarantine") == done("a.jpg")
            assert known.last(image("b.jpg").url, "quarantine") == entry("b.jpg")
            assert known.last(image("c.jpg").url, "quarantine") is None
            assert known.last(image("a.jpg").url, "undo") is None
            assert known.entries("quarantine") == [done("a.jpg"), entry("b.jpg")]

    def test_is_in_doubt_between_intent_and_outcome(self, local_folder: str) -> None:
        journal, url = open_journal(local_folder), image("a.jpg").url
        assert journal.is_in_doubt(url, "quarantine") is False
        journal.append("quarantine", "intents", [entry("a.jpg")])
        assert journal.is_in_doubt(url, "quarantine") is True
        assert journal.is_in_doubt(url, "undo") is False
        journal.append("quarantine", "outcomes", [done("a.jpg", status="failed")])
        assert journal.is_in_doubt(url, "quarantine") is False
        journal.append("quarantine", "intents", [entry("a.jpg")])
        assert journal.is_in_doubt(url, "quarantine") is True

    @pytest.mark.parametrize(
        ("status", "is_so"),
        [(None, False), ("done", True), ("already", True), ("refused", False), ("failed", False)],
    )
    def test_is_back_or_purged_when_that_is_certain(
        self, local_folder: str, status: Any, is_so: bool
    ) -> None:
        journal, url = written(local_folder), image("a.jpg").url
        assert (journal.is_back(url), journal.is_purged(url)) == (False, False)
        journal.append("undo", "outcomes", [done("a.jpg", status=status)])
        assert (journal.is_back(url), journal.is_purged(url)) == (is_so, False)
        journal.append("purge", "outcomes", [done("b.jpg", status=status)])
        assert journal.is_purged(image("b.jpg").url) is is_so
        assert journal.is_back(image("b.jpg").url) is False

    def test_names_what_was_removed(self, local_folder: str) -> None:
        journal = open_journal(local_folder)
        journal.append("quarantine", "outcomes", [done("a.jpg"), done("b.jpg", status="refused")])
        journal.append("permanent", "intents", [entry("c.jpg", to_url=None)])
        journal.append("copy", "outcomes", [done("d.jpg")])
        journal.append("undo", "outcomes", [done("a.jpg")])
        removals = [entry.image.url[-5:] for entry in journal.removals()]
        assert removals == ["a.jpg", "b.jpg", "c.jpg"]


def test_operation_has_ended_when_its_last_segment_says_so(local_folder: str) -> None:
    journal = open_journal(local_folder)
    seen = []
    for operation, kind in (
        ("quarantine", "begin"),
        ("quarantine", "intents"),
        ("quarantine", "outcomes"),
        ("quarantine", "end"),
        ("undo", "intents"),
        ("undo", "end"),
        ("quarantine", "intents"),
    ):
        journal.append(operation, kind)  # type: ignore[arg-type]
        seen.append((journal.has_ended("quarantine"), journal.has_ended("undo")))
    assert seen == [
        (False, False),
        (False, False),
        (False, False),
        (True, False),
        (True, False),
        (True, True),
        (False, True),
    ]
    assert (journal.has_begun("undo"), journal.has_begun("purge")) == (True, False)


class TestApplies:
    def test_have_their_place_in_the_workspace(self) -> None:
        for workspace in ("s3://bucket/dedup", "file:///work"):
            assert journal_url(workspace, FIRST) == f"{workspace}/runs/{RUN}/applies/{FIRST}"

    @pytest.mark.parametrize(
        ("apply_id", "run"),
        [
            ("night-0123456789abcdef-permanent-01234567-12", "night-0123456789abcdef"),
            ("a-copy-b-copy-01234567-1", "a-copy-b"),
            ("-night-quarantine-01234567-999999", "-night"),
            ("2026.01.01-0123456789abcdef-quarantine-01234567-1", "2026.01.01-0123456789abcdef"),
        ],
    )
    def test_belong_to_a_run(self, apply_id: str, run: str) -> None:
        assert (
            journal_url("s3://cameras", apply_id) == f"s3://cameras/runs/{run}/applies/{apply_id}"
        )

    @pytest.mark.parametrize(
        "apply_id",
        [
            "",
            "night",
            "night-quarantine-01234567-",
            "night-quarantine-01234567-0",
            "night-quarantine-01234567-01",
            "night-quarantine-01234567-1000000",
            "night-quarantine-0123456-1",
            "night-quarantine-0123456g-1",
            "night-destroy-01234567-1",
            "-quarantine-01234567-1",
            "../night-quarantine-01234567-1",
            "..-quarantine-01234567-1",
            "a/b-quarantine-01234567-1",
            "night-quarantine-01234567-1\n",
            "night\n-quarantine-01234567-1",
            "nächt-quarantine-01234567-1",
            "night-quarantine-01234567-1/..",
        ],
    )
    def test_with_another_id_are_none(self, apply_id: str) -> None:
        with pytest.raises(ArtifactError, match=r"expected an apply id such as .*, found"):
            journal_url("s3://cameras", apply_id)

    def test_are_listed(self, folder: str) -> None:
        assert list_applies(folder) == []
        for apply_id in (f"{NAME}-2", FIRST, f"{RUN}-copy-01234567-1"):
            written(folder, apply_id)
        storage.publish_bytes(f"{folder}/README", b"")
        storage.publish_bytes(f"{folder}/other/000000.jsonl", b"")
        assert list_applies(folder) == [f"{RUN}-copy-01234567-1", FIRST, f"{NAME}-2"]

    def test_are_continued_until_they_are_undone(self, folder: str) -> None:
        journal = current_journal(folder, NAME)
        assert (journal.apply_id, journal.heads) == (FIRST, [])
        written(folder)
        journal = current_journal(folder, NAME)
        assert (journal.apply_id, len(journal.heads)) == (FIRST, 4)
        journal.append("undo", "begin")
        journal = current_journal(folder, NAME)
        assert (journal.apply_id, journal.heads) == (f"{NAME}-2", [])
        assert journal.url == f"{folder}/{NAME}-2"
        written(folder, f"{NAME}-2")
        assert current_journal(folder, NAME).apply_id == f"{NAME}-2"

    def test_are_counted_as_numbers(self, local_folder: str) -> None:
        for number in (2, 9, 10):
            written(local_folder, f"{NAME}-{number}").append("undo", "begin")
        assert current_journal(local_folder, NAME).apply_id == f"{NAME}-11"

    def test_of_other_names_are_not_continued(self, local_folder: str) -> None:
        written(local_folder, f"{RUN}-quarantine-89abcdef-7")
        written(local_folder, f"{RUN}-permanent-01234567-8")
        assert current_journal(local_folder, NAME).apply_id == FIRST

    def test_that_are_damaged_are_not_begun_anew(self, local_folder: str) -> None:
        journal = written(local_folder)
        (path_of(journal.url) / "000001.jsonl").write_bytes(b"")
        with pytest.raises(ArtifactError):
            current_journal(local_folder, NAME)


class TestRemovedByOthers:
    def test_is_told_with_who_did_it(self, folder: str) -> None:
        other = f"{RUN}-permanent-89abcdef-1"
        written(folder)
        journal = open_journal(folder, other)
        journal.append("permanent", "outcomes", [done("c.jpg", to_url=None)])
        a, b, c = (image(name).url for name in ("a.jpg", "b.jpg", "c.jpg"))
        assert removed_by_others(folder, f"{NAME}-2") == {a: FIRST, b: FIRST, c: other}
        assert removed_by_others(folder, FIRST) == {c: other}
        assert removed_by_others(folder, other) == {a: FIRST, b: FIRST}

    def test_is_empty_at_first(self, local_folder: str) -> None:
        assert removed_by_others(local_folder, FIRST) == {}

    def test_is_only_what_is_certain_and_still_so(self, local_folder: str) -> None:
        journal = written(local_folder)
        journal.append("undo", "outcomes", [done("a.jpg")])
        journal.append("undo", "intents", [entry("b.jpg")])
        journal.append("quarantine", "intents", [entry("c.jpg")])
        journal.append(
            "quarantine",
            "outcomes",
            [
                done("d.jpg", status="failed"),
                done("e.jpg", status="refused"),
                done("f.jpg", status="already"),
                done("g.jpg"),
            ],
        )
        journal.append("purge", "outcomes", [done("g.jpg")])
        journal.append("copy", "outcomes", [done("h.jpg")])
        assert removed_by_others(local_folder, f"{NAME}-2") == {
            image("b.jpg").url: FIRST,
            image("g.jpg").url: FIRST,
        }

    def test_is_not_believed_from_a_damaged_journal(self, local_folder: str) -> None:
        journal = written(local_folder)
        (path_of(journal.url) / "000002.jsonl").write_bytes(b"")
        with pytest.raises(ArtifactError):
            removed_by_others(local_folder, f"{NAME}-2")
