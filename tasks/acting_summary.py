"""What an apply, an undo or a purge amounts to."""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from tasks.journal import Entry
from tasks.paths import is_below, relative_to
from tasks.summary import markdown_table

MAX_PROBLEMS_LISTED = 1_000
MAX_FIRST_ROWS = 10


class Problem(BaseModel):
    """An image that was left alone although it was to be acted on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    status: str
    """`refused` because a check failed, `failed` because the store did."""
    detail: str


class ActingSummary(BaseModel):
    """An apply, undo or purge in numbers; `--json` prints it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: str
    apply_id: str | None
    """Names the apply for `dedup undo`; None for a purge, which is about many."""
    is_dry_run: bool
    is_rejected: bool = False
    """A person said no, so nothing was done."""
    source_url: str | None
    manifest_url: str | None
    to_folder: str | None
    """Where the images or their copies go."""
    journal_url: str | None
    num_planned: int
    """Images that are to be acted on."""
    num_done: int
    """Images acted on, by this call or an earlier one that it continued."""
    num_skipped: int
    """Images left alone: as wanted already, or because a check failed."""
    num_failed: int
    """Images left alone because the store failed."""
    num_problems: int
    """Images left alone although they were to be acted on."""
    bytes_planned: int
    bytes_freed: int
    """Bytes removed from the source; from quarantine for a purge."""
    first_rows: list[str]
    guards: list[str]
    problems: list[Problem]
    """At most the first 1,000."""

    @property
    def is_clean(self) -> bool:
        """Whether everything that was to be done is done."""
        return self.num_problems == 0 and not self.is_rejected


def summarize_acting(
    operation: str,
    planned: Sequence[Entry],
    outcomes: Iterable[Entry],
    *,
    apply_id: str | None = None,
    is_dry_run: bool = False,
    source_url: str | None = None,
    manifest_url: str | None = None,
    to_folder: str | None = None,
    journal_url: str | None = None,
    guards: Sequence[str] = (),
) -> ActingSummary:
    """Count what was planned and what has become of it.

    Args:
        operation: What was done.
        planned: The images to act on.
        outcomes: Their last outcomes, as far as there are any.
        apply_id: The apply that this is about.
        is_dry_run: Nothing was done.
        source_url: Where the images are.
        manifest_url: What decided about them.
        to_folder: Where they or their copies go.
        journal_url: What was written down.
        guards: What was checked, a line each.
    """
    ended = list(outcomes)
    problems = [entry for entry in ended if entry.status in ("refused", "failed")]
    done = [entry for entry in ended if entry.status == "done"]
    frees = operation in ("quarantine", "permanent", "purge")
    return ActingSummary(
        operation=operation,
        apply_id=apply_id,
        is_dry_run=is_dry_run,
        source_url=source_url,
        manifest_url=manifest_url,
        to_folder=to_folder,
        journal_url=journal_url,
        num_planned=len(planned),
        num_done=len(done),
        num_skipped=sum(entry.status in ("refused", "already") for entry in ended),
        num_failed=sum(entry.status == "failed" for entry in ended),
        num_problems=len(problems),
        bytes_planned=sum(entry.image.size_bytes for entry in planned),
        bytes_freed=sum(entry.image.size_bytes for entry in done) if frees else 0,
        first_rows=[_line(entry, source_url or "") for entry in planned[:MAX_FIRST_ROWS]],
        guards=list(guards),
        problems=[
            Problem(url=entry.image.url, status=str(entry.status), detail=entry.detail)
            for entry in problems[:MAX_PROBLEMS_LISTED]
        ],
    )


def acting_rows(summary: ActingSummary) -> list[tuple[str, str]]:
    """The summary as labelled values for people, in reading order."""
    rows = [
        ("operation", summary.operation + (" (dry run)" if summary.is_dry_run else "")),
        ("apply", summary.apply_id or ""),
        ("source", summary.source_url or ""),
        ("manifest", summary.manifest_url or ""),
        ("goes to", summary.to_folder or ""),
        *(("guard", guard) for guard in summary.guards),
        ("images to act on", f"{summary.num_planned:,} of {summary.bytes_planned:,} bytes"),
    ]
    if summary.is_dry_run:
        rows += [("first" if n == 0 else "", row) for n, row in enumerate(summary.first_rows)]
    else:
        rows += [
            ("done", f"{summary.num_done:,}"),
            ("skipped", f"{summary.num_skipped:,}"),
            ("failed", f"{summary.num_failed:,}"),
            ("bytes freed", f"{summary.bytes_freed:,}"),
            ("journal", summary.journal_url or ""),
        ]
    rows += [
        (problem.status, f"{_name(problem.url, summary.source_url or '')}: {problem.detail!r}")
        for problem in summary.problems
    ]
    if summary.num_problems > len(summary.problems):
        rows.append(("", f"and {summary.num_problems - len(summary.problems):,} more"))
    return [(label, _printable(value)) for label, value in rows if value]


def acting_markdown(summary: ActingSummary) -> str:
    """The summary as a Markdown table, for the Prefect UI."""
    return markdown_table(acting_rows(summary))


def _printable(text: str) -> str:
    """Escape what could play tricks on the terminal, whoever has written it."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _line(entry: Entry, source_url: str) -> str:
    keeper = f", keeper {_name(entry.keeper.url, source_url)}" if entry.keeper else ""
    return f"{_name(entry.image.url, source_url)} ({entry.rule}{keeper})"


def _name(url: str, source_url: str) -> str:
    # As a literal, so that no character of a file name can play tricks on the terminal.
    return repr(relative_to(url, source_url) if is_below(url, source_url) else url)
