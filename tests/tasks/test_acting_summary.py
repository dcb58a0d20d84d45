"""What an apply, an undo or a purge amounts to, in numbers and for people."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.acting_summary import (
    ActingSummary,
    acting_markdown,
    acting_rows,
    summarize_acting,
)
from tasks.journal import Entry, ImageRecord, Operation, Status

SOURCE = "file:///images"


def image(path: str, size_bytes: int) -> ImageRecord:
    return ImageRecord(url=f"{SOURCE}/{path}", size_bytes=size_bytes, etag="e", sha256="0" * 64)


def entry(
    path: str,
    *,
    size_bytes: int = 10,
    status: Status | None = None,
    detail: str = "",
    keeper: str | None = "k.jpg",
    rule: str = "within eps, distance 0.031250",
) -> Entry:
    return Entry(
        image=image(path, size_bytes),
        to_url=None,
        keeper=None if keeper is None else image(keeper, 10),
        rule=rule,
        status=status,
        detail=detail,
    )


PLANNED = [entry(f"{name}.jpg", size_bytes=10**n) for n, name in enumerate("abcde")]
OUTCOMES = [
    entry("a.jpg", size_bytes=1, status="done"),
    entry("b.jpg", size_bytes=10, status="already", detail="was gone"),
    entry("c.jpg", size_bytes=100, status="refused", detail="its keeper is gone"),
    entry("d.jpg", size_bytes=1_000, status="failed", detail="OSError: [Errno 5] a fault"),
]


def summary(operation: str = "quarantine", **options: Any) -> ActingSummary:
    return summarize_acting(operation, PLANNED, OUTCOMES, source_url=SOURCE, **options)


def rows_of(found: ActingSummary) -> dict[str, str]:
    return dict(acting_rows(found))


class TestCounts:
    def test_every_outcome_is_counted(self) -> None:
        found = summary()
        assert found.num_planned == 5
        assert (found.num_done, found.num_skipped, found.num_failed) == (1, 2, 1)
        assert found.num_problems == 2
        assert found.bytes_planned == 11_111
        assert found.bytes_freed == 1

    def test_images_in_doubt_are_in_no_count(self) -> None:
        found = summarize_acting("quarantine", PLANNED, [entry("a.jpg")])
        assert (found.num_done, found.num_skipped, found.num_failed) == (0, 0, 0)
        assert found.is_clean

    @pytest.mark.parametrize(
        ("operation", "freed"),
        [("quarantine", 1), ("permanent", 1), ("purge", 1), ("copy", 0), ("undo", 0)],
    )
    def test_only_what_removes_frees_bytes(self, operation: str, freed: int) -> None:
        assert summary(operation).bytes_freed == freed

    def test_problems_are_named_with_their_reasons(self) -> None:
        assert [(p.url, p.status, p.detail) for p in summary().problems] == [
            (f"{SOURCE}/c.jpg", "refused", "its keeper is gone"),
            (f"{SOURCE}/d.jpg", "failed", "OSError: [Errno 5] a fault"),
        ]

    def test_at_most_a_thousand_problems_are_listed_but_all_are_counted(self) -> None:
        outcomes = [entry(f"{n}.jpg", status="refused", detail="no") for n in range(1_203)]
        found = summarize_acting("quarantine", outcomes, outcomes, source_url=SOURCE)
        assert (found.num_problems, len(found.problems)) == (1_203, 1_000)
        assert acting_rows(found)[-1] == ("", "and 203 more")

    @given(st.lists(st.sampled_from(["done", "already", "refused", "failed"])))
    def test_every_image_with_an_outcome_is_done_skipped_or_failed(
        self, statuses: list[Status]
    ) -> None:
        outcomes = [entry(f"{n}.jpg", status=status) for n, status in enumerate(statuses)]
        found = summarize_acting("purge", outcomes, iter(outcomes))
        assert found.num_done + found.num_skipped + found.num_failed == len(statuses)
        assert found.is_clean is not bool({"refused", "failed"} & set(statuses))
        assert found.bytes_freed == 10 * statuses.count("done")


class TestIsClean:
    @pytest.mark.parametrize(
        ("status", "is_clean"),
        [("done", True), ("already", True), ("refused", False), ("failed", False)],
    )
    def test_goes_by_what_was_left_alone(self, status: Status, is_clean: bool) -> None:
        found = summarize_acting("undo", [], [entry("a.jpg", status=status)])
        assert found.is_clean is is_clean

    def test_rejected_is_not_clean(self) -> None:
        found = summarize_acting("quarantine", PLANNED, [])
        assert found.is_clean
        assert not found.model_copy(update={"is_rejected": True}).is_clean


class TestRows:
    def test_of_what_was_done(self) -> None:
        found = summary(
            apply_id="night-1",
            manifest_url="file:///data/manifest.parquet",
            to_folder="file:///data/quarantine/night-1",
            journal_url="file:///data/journal",
            guards=["complete night: complete (met)", "twins: none (met)"],
        )
        assert acting_rows(found) == [
            ("operation", "quarantine"),
            ("apply", "night-1"),
            ("source", "file:///images"),
            ("manifest", "file:///data/manifest.parquet"),
            ("goes to", "file:///data/quarantine/night-1"),
            ("guard", "complete night: complete (met)"),
            ("guard", "twins: none (met)"),
            ("images to act on", "5 of 11,111 bytes"),
            ("done", "1"),
            ("skipped", "2"),
            ("failed", "1"),
            ("bytes freed", "1"),
            ("journal", "file:///data/journal"),
            ("refused", "'c.jpg': 'its keeper is gone'"),
            ("failed", "'d.jpg': 'OSError: [Errno 5] a fault'"),
        ]

    def test_of_a_dry_run_show_the_first_images_and_no_counts(self) -> None:
        planned = [entry(f"{n:02}.jpg") for n in range(12)]
        found = summarize_acting("permanent", planned, [], is_dry_run=True, source_url=SOURCE)
        assert acting_rows(found) == [
            ("operation", "permanent (dry run)"),
            ("source", "file:///images"),
            ("images to act on", "12 of 120 bytes"),
            *(
                (
                    "first" if n == 0 else "",
                    f"'{n:02}.jpg' (within eps, distance 0.031250, keeper 'k.jpg')",
                )
                for n in range(10)
            ),
        ]

    def test_copy_has_no_keeper(self) -> None:
        found = summarize_acting(
            "copy", [entry("a.jpg", keeper=None, rule="unique")], [], source_url=SOURCE
        )
        assert found.first_rows == ["'a.jpg' (unique)"]

    def test_images_of_many_sources_are_named_in_full(self) -> None:
        found = summarize_acting("purge", PLANNED[:1], OUTCOMES[2:3])
        assert found.first_rows[0].startswith("'file:///images/a.jpg' (")
        assert rows_of(found)["refused"].startswith("'file:///images/c.jpg': ")

    def test_large_numbers_can_be_read(self) -> None:
        big = entry("a.jpg", size_bytes=1_234_567_890, status="done")
        rows = rows_of(summarize_acting("purge", [big], [big]))
        assert rows["bytes freed"] == "1,234,567,890"
        assert rows["images to act on"] == "1 of 1,234,567,890 bytes"


HOSTILE = "x\n\r\t\x1b[2J\u202egpj.\u2066\u200b\x00\u0085\u2028.jpg"


class TestNamesPlayNoTricks:
    """Whatever a file is called, every row is one line of characters that can be seen."""

    def rows(self, operation: Operation = "quarantine", *, is_dry_run: bool = False) -> str:
        planned = [entry(HOSTILE, keeper=HOSTILE)]
        outcomes = [entry(HOSTILE, status="refused", detail=f"its keeper is gone: {HOSTILE}")]
        found = summarize_acting(
            operation, planned, outcomes, is_dry_run=is_dry_run, source_url=SOURCE
        )
        return "".join(label + value for label, value in acting_rows(found))

    @pytest.mark.parametrize("is_dry_run", [False, True])
    def test_of_images_keepers_and_reasons(self, is_dry_run: bool) -> None:
        rows = self.rows(is_dry_run=is_dry_run)
        assert rows.isprintable()
        assert r"x\n\r\t\x1b[2J\u202egpj" in rows

    def test_of_rules_of_the_manifest(self) -> None:
        planned = [entry("a.jpg", rule=HOSTILE)]
        found = summarize_acting("quarantine", planned, [], is_dry_run=True, source_url=SOURCE)
        assert all(value.isprintable() for _, value in acting_rows(found))

    def test_of_the_source_which_the_manifest_names(self) -> None:
        found = summarize_acting("quarantine", [], [], source_url=f"file:///{HOSTILE}")
        assert all(value.isprintable() for _, value in acting_rows(found))

    @given(st.text())
    def test_any_name(self, name: str) -> None:
        planned = [entry(name, keeper=name)]
        outcomes = [entry(name, status="failed", detail=name)]
        for is_dry_run in (False, True):
            found = summarize_acting(
                "copy", planned, outcomes, is_dry_run=is_dry_run, source_url=SOURCE
            )
            assert all(value.isprintable() for _, value in acting_rows(found))


class TestMarkdown:
    def test_is_a_table(self) -> None:
        lines = acting_markdown(summary()).splitlines()
        assert lines[:4] == [
            "| | |",
            "| --- | --- |",
            "| operation | quarantine |",
            "| source | file:///images |",
        ]
        assert len(lines) == 2 + len(acting_rows(summary()))

    def test_name_ends_no_cell_and_no_row(self) -> None:
        outcomes = [entry("a|b\n| done | 9 |.jpg", status="refused", detail="x | y")]
        found = summarize_acting("undo", [], outcomes, source_url=SOURCE)
        last = acting_markdown(found).splitlines()[-1]
        assert last == r"| refused | 'a\|b\n\| done \| 9 \|.jpg': 'x \| y' |"


def test_summary_is_json_that_reads_back() -> None:
    found = summary(apply_id="night-1", guards=["a: b (met)"])
    assert ActingSummary.model_validate_json(found.model_dump_json()) == found
    assert json.loads(found.model_dump_json())["problems"][0] == {
        "url": "file:///images/c.jpg",
        "status": "refused",
        "detail": "its keeper is gone",
    }
