"""The commands that act: `dedup apply`, `dedup undo`, `dedup purge`, `dedup approve`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from config import ActingSettings, ConfigError, load_apply_config, parse_duration
from flows.console import (
    EXIT_FAILED,
    EXIT_USAGE,
    explained_errors,
    fail,
    named_manifest,
    show_own_log,
    without_none,
)

if TYPE_CHECKING:
    from tasks.acting_summary import ActingSummary

WORKSPACE = typer.Option(help="Workspace of the run: a path or any fsspec URL.")
AS_JSON = typer.Option("--json", help="Print the outcome as one JSON object.")
WORKERS = typer.Option(help="Images acted on at the same time.")
LOCK_SECONDS = typer.Option(help="A lock whose owner has not renewed it for so long is taken over.")


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command()(apply)
    app.command()(undo)
    app.command()(purge)
    app.command()(approve)


def apply(
    what: Annotated[
        str,
        typer.Argument(
            help="URL of a manifest, or a run id with --workspace.", metavar="MANIFEST|RUN"
        ),
    ],
    workspace: Annotated[str | None, WORKSPACE] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML profile with an apply section; the options win.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Move the images to remove into quarantine.")
    ] = False,
    permanent: Annotated[
        bool, typer.Option("--permanent", help="With --delete: delete them for good instead.")
    ] = False,
    copy_to: Annotated[
        str | None,
        typer.Option(
            help="Copy all images to this folder, one folder per cluster and one for noise."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="With --copy-to: keep copies only the images to keep.")
    ] = None,
    execute: Annotated[
        bool, typer.Option("--execute", help="Do it. Without, it only says what it would do.")
    ] = False,
    quarantine_to: Annotated[
        str | None,
        typer.Option(
            help="Folder for the quarantine, on the same store; default: in the workspace."
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(help="auto, content or version: how images are told to be the ones seen."),
    ] = None,
    max_removed_fraction: Annotated[
        float | None,
        typer.Option(help="Largest share that may be removed, overall and per partition."),
    ] = None,
    max_manifest_age: Annotated[
        str | None, typer.Option(help="How old the manifest may be, such as 36h or 7d.")
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Act on a night whose shards failed in part.")
    ] = False,
    allow_orphans: Annotated[
        bool,
        typer.Option("--allow-orphans", help="Remove images whose keeper is farther than eps."),
    ] = False,
    allow_gated: Annotated[
        bool,
        typer.Option("--allow-gated", help="Remove images that were judged by another frame."),
    ] = False,
    allow_unlocked: Annotated[
        bool,
        typer.Option("--allow-unlocked", help="Act on a store where no lock can hold."),
    ] = False,
    workers: Annotated[int | None, WORKERS] = None,
    lock_seconds: Annotated[float | None, LOCK_SECONDS] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Carry out a manifest: move the redundant images away, or copy images elsewhere."""
    if delete and copy_to is not None:
        fail("--delete and --copy-to exclude each other", EXIT_USAGE)
    if permanent and not delete:
        fail("--permanent goes with --delete", EXIT_USAGE)
    if execute and not delete and copy_to is None and config is None:
        fail("--execute needs --delete or --copy-to URL", EXIT_USAGE)
    action = "copy" if copy_to is not None else "quarantine" if delete else None
    overrides = without_none(
        {
            "action": "permanent" if permanent else action,
            "copy_to_url": copy_to,
            "only": only,
            "quarantine_url": quarantine_to,
            "verify": verify,
            "guards": {
                "allow_partial": allow_partial or None,
                "allow_orphans": allow_orphans or None,
                "allow_gated": allow_gated or None,
                "allow_unlocked": allow_unlocked or None,
                "max_removed_fraction": max_removed_fraction,
                "max_manifest_age": max_manifest_age,
            },
            "acting": {"workers": workers, "lock_seconds": lock_seconds},
            "workspace_url": workspace,
        }
    )
    with explained_errors():
        url = named_manifest(what, workspace)
        try:
            # `--execute` is said here or not at all: a profile must not make a dry run act.
            settings = load_apply_config(
                config, overrides | {"manifest_url": url, "execute": execute}
            )
        except ConfigError as error:
            fail(str(error), EXIT_USAGE)
        from flows.acting import apply_manifest

        show_own_log()
        _print(apply_manifest(settings), as_json)


def undo(
    apply_id: Annotated[str, typer.Argument(help="As `dedup apply` printed it.")],
    workspace: Annotated[str, WORKSPACE],
    workers: Annotated[int | None, WORKERS] = None,
    lock_seconds: Annotated[float | None, LOCK_SECONDS] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Put back everything that an apply has moved into quarantine."""
    with explained_errors():
        from flows.acting import undo_apply

        show_own_log()
        _print(undo_apply(apply_id, workspace, _acting(workers, lock_seconds)), as_json)


def purge(
    workspace: Annotated[str, WORKSPACE],
    older_than: Annotated[
        str, typer.Option(help="How long an image must have been there, such as 30d.")
    ],
    execute: Annotated[
        bool, typer.Option("--execute", help="Do it. Without, it only says what it would do.")
    ] = False,
    allow_orphans: Annotated[
        bool,
        typer.Option("--allow-orphans", help="Delete also images whose keeper is gone."),
    ] = False,
    workers: Annotated[int | None, WORKERS] = None,
    lock_seconds: Annotated[float | None, LOCK_SECONDS] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Empty the quarantine of what has been in it for long."""
    try:
        age = parse_duration(older_than)
    except ValueError as error:
        fail(f"--older-than: {error}", EXIT_USAGE)
    with explained_errors():
        from flows.acting import purge_quarantine

        show_own_log()
        _print(
            purge_quarantine(
                workspace,
                age,
                execute=execute,
                allow_orphans=allow_orphans,
                acting=_acting(workers, lock_seconds),
            ),
            as_json,
        )


def approve(
    run: Annotated[str, typer.Argument(help="Run id, as `dedup run` printed it.")],
    workspace: Annotated[str, WORKSPACE],
    reject: Annotated[bool, typer.Option("--reject", help="Say no instead.")] = False,
    comment: Annotated[str, typer.Option(help="Written down with the answer.")] = "",
) -> None:
    """Answer for a run whose apply waits for a person."""
    with explained_errors():
        from flows.approving import answer

        show_own_log()
        manifest = answer(workspace, run, is_approved=not reject, comment=comment)
    sys.stdout.write(f"{'rejected' if reject else 'approved'}  {manifest.url}\n")


def _acting(workers: int | None, lock_seconds: float | None) -> ActingSettings:
    from pydantic import ValidationError

    from config.profiles import describe

    try:
        return ActingSettings.model_validate(
            without_none({"workers": workers, "lock_seconds": lock_seconds})
        )
    except ValidationError as error:
        fail(describe(error), EXIT_USAGE)


def _print(summary: "ActingSummary", as_json: bool) -> None:
    from tasks.acting_summary import acting_rows

    if as_json:
        sys.stdout.write(summary.model_dump_json() + "\n")
    else:
        rows = acting_rows(summary)
        width = max(len(label) for label, _ in rows)
        for label, value in rows:
            sys.stdout.write(f"{label:<{width}}  {value}\n")
        if summary.is_dry_run:
            sys.stdout.write(f"{'':<{width}}  Nothing was changed: that takes --execute.\n")
    if not summary.is_clean:
        fail(
            f"{summary.num_problems} images were left alone; each is named with its reason",
            EXIT_FAILED,
        )
