"""The command that takes a person's second opinion: `dedup review`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.console import explained_errors, named_manifest, print_rows, show_own_log

if TYPE_CHECKING:
    from flows.reviewing import ReviewSummary


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command()(review)


def review(
    what: Annotated[
        str,
        typer.Argument(
            help="URL of a manifest, or a run id with --workspace.", metavar="MANIFEST|RUN"
        ),
    ],
    choices: Annotated[
        str,
        typer.Argument(help="What was saved in its report: review.json.", metavar="REVIEW"),
    ],
    workspace: Annotated[
        str | None,
        typer.Option(help="Workspace of the run; default: the one that the manifest lies in."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcome as one JSON object.")
    ] = False,
) -> None:
    """Write a new manifest that heeds a person's choices, and remember them for later nights."""
    with explained_errors():
        from flows.reviewing import review_manifest

        show_own_log()
        url = named_manifest(what, workspace)
        _print(review_manifest(url, choices, workspace), as_json)


def _print(summary: "ReviewSummary", as_json: bool) -> None:
    if as_json:
        sys.stdout.write(summary.model_dump_json() + "\n")
        return
    remembered = "remembered" if summary.is_new else "was remembered already: nothing is new"
    rows = [
        ("review", f"number {summary.number}, {remembered}"),
        ("stay now", f"{summary.num_changed_to_keep:,} images that were to go"),
        ("go now", f"{summary.num_changed_to_remove:,} images that were to stay"),
        ("run", summary.run_id),
        ("manifest", summary.manifest_url),
        ("report", summary.report_url),
    ]
    print_rows(rows)
