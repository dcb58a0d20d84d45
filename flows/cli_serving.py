"""The commands with a page in the browser: `dedup serve` and `dedup calibrate`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.console import (
    EXIT_USAGE,
    explained_errors,
    fail,
    named_manifest,
    print_rows,
    show_own_log,
    to_people,
)

if TYPE_CHECKING:
    from tasks.calibrations import Calibration, CalibrationResult

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
    app.command()(calibrate)


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
    with explained_errors():
        from flows.serving import report_server
        from tasks.manifests import read_manifest

        show_own_log()
        manifest_url = named_manifest(what, workspace)
        server = report_server(read_manifest(manifest_url), port)
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        to_people.print("Only this machine can open it. Ctrl-C ends it.", highlight=False)
        if is_opened:
            server.open_browser()
        server.run()


def calibrate(
    run: Annotated[
        str | None, typer.Option(help="Run id (with --workspace), or the URL of its manifest.")
    ] = None,
    workspace: Annotated[str | None, WORKSPACE] = None,
    pairs: Annotated[int, typer.Option(min=1, help="After how many answers it ends.")] = 40,
    precision: Annotated[
        float,
        typer.Option(
            min=0.5, max=1.0, help="Share of the pairs within eps that shall show the same."
        ),
    ] = 0.99,
    answers: Annotated[
        str | None,
        typer.Option(help="Ask nothing: print what follows from this calibration.json."),
    ] = None,
    port: Annotated[int, PORT] = 0,
    is_opened: Annotated[bool, OPEN] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Ask in the browser whether pairs of images show the same, and say which eps follows."""
    if (run is None) == (answers is None):
        fail("give either --run or --answers", EXIT_USAGE)
    with explained_errors():
        from tasks.calibrations import conclude, read_calibration

        show_own_log()
        if answers is not None:
            calibration = read_calibration(answers)
        else:
            calibration = _interview(str(run), workspace, pairs, precision, port, is_opened)
        _print(conclude(calibration, precision), as_json)


def _interview(
    run: str, workspace: str | None, num_pairs: int, precision: float, port: int, is_opened: bool
) -> "Calibration":
    from flows.calibrating import calibration_server, prepare
    from tasks.manifests import read_manifest
    from tasks.originals import Originals

    manifest = read_manifest(named_manifest(run, workspace))
    originals = Originals(manifest)
    interview = prepare(manifest, num_pairs, originals)
    server = calibration_server(interview, manifest, originals, precision=precision, port=port)
    to_people.print(
        f"Answer here: {server.url}\nOnly this machine can open it. Each answer is kept at once: "
        "after Ctrl-C the same command goes on where you were.",
        highlight=False,
        soft_wrap=True,
    )
    if is_opened:
        server.open_browser()
    server.run()
    return interview.calibration


def _print(result: "CalibrationResult", as_json: bool) -> None:
    from tasks.calibrations import profile_lines, result_rows

    if as_json:
        sys.stdout.write(result.model_dump_json() + "\n")
        return
    print_rows(result_rows(result))
    sys.stdout.write(f"\n{profile_lines(result)}" if result.suggested else "")
