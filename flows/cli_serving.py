"""The command with a page in the browser: `dedup serve`."""

import sys
from typing import Annotated

import typer

from flows.console import EXIT_USAGE, explained_errors, fail, show_own_log, to_people

WORKSPACE = typer.Option(help="Workspace of the run: a path or any fsspec URL.")
PORT = typer.Option(min=0, max=65_535, help="Port on this machine; 0 takes a free one.")
OPEN = typer.Option(
    "--open",
    help="Open the page in the browser, if there is one. Other users of this machine can then read "
    "its address in the list of processes.",
)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command()(serve)


def serve(
    what: Annotated[
        str,
        typer.Argument(
            help="A run id (with --workspace) or the URL of a manifest.", metavar="RUN|MANIFEST"
        ),
    ],
    workspace: Annotated[str | None, WORKSPACE] = None,
    port: Annotated[int, PORT] = 0,
    is_opened: Annotated[bool, OPEN] = False,
) -> None:
    """Show a run's report and its images in the browser, and save the review made there."""
    is_manifest = what.endswith(".parquet")
    if not is_manifest and workspace is None:
        fail(f"{what} is no manifest (*.parquet); to name a run, give its --workspace", EXIT_USAGE)
    with explained_errors():
        from flows.serving import report_server
        from tasks.manifests import manifest_url_of, read_manifest

        show_own_log()
        manifest_url = what if is_manifest else manifest_url_of(str(workspace), what)
        server = report_server(read_manifest(manifest_url), port)
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        to_people.print("Only this machine can open it. Ctrl-C ends it.", highlight=False)
        if is_opened:
            server.open_browser()
        server.run()
