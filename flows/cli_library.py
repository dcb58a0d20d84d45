"""The commands about the library: `dedup library prune`."""

import re
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from config import parse_duration
from flows.console import EXIT_USAGE, explained_errors, fail, show_own_log

library = typer.Typer(
    help="The images that earlier nights kept.", no_args_is_help=True, add_completion=False
)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.add_typer(library, name="library")


@library.callback()
def about() -> None:
    """The images that earlier nights kept."""


@library.command()
def prune(
    workspace: Annotated[str, typer.Option(help="Workspace: a path or any fsspec URL.")],
    older_than: Annotated[
        str | None, typer.Option(help="How long ago an image must have been taken, such as 90d.")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="Regular expression: only partitions in which it is found.")
    ] = None,
    gone: Annotated[
        bool, typer.Option("--gone", help="Only images that are no longer in their place.")
    ] = False,
    execute: Annotated[
        bool, typer.Option("--execute", help="Do it. Without, it only says what it would do.")
    ] = False,
) -> None:
    """Take images out of the library, so that later nights may keep their like again."""
    if older_than is None and partition is None and not gone:
        fail("expected --older-than, --partition or --gone, found none of them", EXIT_USAGE)
    try:
        age = None if older_than is None else parse_duration(older_than)
    except ValueError as error:
        fail(f"--older-than: {error}", EXIT_USAGE)
    try:
        re.compile(partition or "")
    except re.error as error:
        fail(f"--partition: not a regular expression: {error}", EXIT_USAGE)
    with explained_errors():
        from tasks.prune_library import Pruning, prune_library

        show_own_log()
        pruning = Pruning(
            captured_before=None if age is None else datetime.now(UTC) - age,
            partition=partition,
            is_gone=gone,
        )
        pruned = prune_library(workspace, pruning, execute=execute)
    num_pruned = sum(segment.num_pruned for segment in pruned)
    did = "left" if execute else "would leave"
    sys.stdout.write(f"{num_pruned:,} images of {len(pruned):,} nights {did} the library\n")
    if num_pruned and not execute:
        sys.stdout.write("Nothing was changed: that takes --execute.\n")
