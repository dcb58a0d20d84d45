"""The commands that show a run to others: `dedup evaluate`, `dedup export`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.console import EXIT_USAGE, explained_errors, fail, print_rows, refuse_credentials

if TYPE_CHECKING:
    from tasks.evaluating import Evaluation

WORKSPACE = typer.Option(help="Workspace of the run: a path or any fsspec URL.")


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command()(evaluate)
    app.command()(export)


def evaluate(
    groups: Annotated[
        str,
        typer.Option(help="CSV with the columns path (below the source, or a URL) and group."),
    ],
    run: Annotated[str, typer.Option(help="Run id, as `dedup run` printed it.")],
    workspace: Annotated[str, WORKSPACE],
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Score other values of eps, too, from 0.005 to 0.3.")
    ] = False,
    plot: Annotated[
        str | None, typer.Option(help="Draw the sweep as SVG to this file or URL.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the scores as one JSON object.")
    ] = False,
) -> None:
    """Score a run against groups that people made, with 95 % intervals."""
    refuse_credentials(groups, workspace, plot)
    with explained_errors():
        from tasks import evaluating, storage
        from tasks.evaluation_plot import render_plot

        evaluation = evaluating.evaluate(
            groups,
            run_id=run,
            workspace_url=workspace,
            with_sweep=sweep or plot is not None,
            seed=seed,
        )
        if plot is not None:
            storage.publish_bytes(storage.absolute_url(plot), render_plot(evaluation).encode())
        _print_evaluation(evaluation, as_json)


def export(
    run: Annotated[str, typer.Argument(help="Run id, as `dedup run` printed it.")],
    workspace: Annotated[str, WORKSPACE],
    fiftyone: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Write a fiftyone.types.FiftyOneDataset, with the features."
        ),
    ] = None,
    csv: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write a line per image; a text like a formula gets an apostrophe in front.",
        ),
    ] = None,
    coco: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write a COCO file: one annotation per image, whose category is the decision.",
        ),
    ] = None,
) -> None:
    """Hand the groups and decisions of a run to another tool."""
    wanted = [(name, url) for name, url in _formats(fiftyone, csv, coco).items() if url is not None]
    if len(wanted) != 1:
        fail("give one of --fiftyone FOLDER, --csv FILE, --coco FILE", EXIT_USAGE)
    refuse_credentials(workspace, wanted[0][1])
    with explained_errors():
        from tasks import exporting, storage
        from tasks.runs import open_run

        write = {
            "fiftyone": exporting.export_fiftyone,
            "csv": exporting.export_csv,
            "coco": exporting.export_coco,
        }
        name, place = wanted[0]
        url = storage.absolute_url(place)
        found = open_run(workspace, run)
        write[name](url, found)
        sys.stdout.write(f"{found.images.num_rows:,} images  {url}\n")


def _formats(fiftyone: str | None, csv: str | None, coco: str | None) -> dict[str, str | None]:
    return {"fiftyone": fiftyone, "csv": csv, "coco": coco}


def _print_evaluation(evaluation: "Evaluation", as_json: bool) -> None:
    from tasks.evaluating import evaluation_rows, sweep_lines

    if as_json:
        sys.stdout.write(evaluation.model_dump_json() + "\n")
        return
    print_rows(evaluation_rows(evaluation))
    if evaluation.sweep:
        sys.stdout.write("\n" + "\n".join(sweep_lines(evaluation)) + "\n")
