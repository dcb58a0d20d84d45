"""The commands that ask of images what they resemble: `dedup similarity`, `dedup neighbors`."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from config import ConfigError, load_config
from flows.console import (
    EXIT_USAGE,
    explained_errors,
    fail,
    print_rows,
    printable,
    refuse_credentials,
)

if TYPE_CHECKING:
    from tasks.asking import Neighborhood, Similarity

WORKSPACE = typer.Option(help="Workspace whose features are used: a path or any fsspec URL.")
AS_JSON = typer.Option("--json", help="Print the answer as one JSON object.")


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command()(similarity)
    app.command()(neighbors)


def similarity(
    first: Annotated[str, typer.Argument(help="An image: a path or any fsspec URL.")],
    second: Annotated[str, typer.Argument(help="Another image.")],
    workspace: Annotated[str | None, WORKSPACE] = None,
    run: Annotated[
        str | None, typer.Option(help="Run of the workspace, whose settings and images count.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML profile with the settings, where there is no run.")
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Largest cosine distance that merges two images."),
    ] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Say how similar two images are, and whether they would be merged."""
    if run is not None and workspace is None:
        fail("--run needs its --workspace", EXIT_USAGE)
    if run is not None and config is not None:
        fail("--run and --config exclude each other: a run has its settings", EXIT_USAGE)
    refuse_credentials(first, second, workspace)
    try:
        settings = load_config(config, {"source_url": "unused", "workspace_url": "unused"})
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    with explained_errors():
        from tasks import asking

        # Keras says on standard output what it downloads; there is room for the answer only.
        with redirect_stdout(sys.stderr):
            answer = asking.similarity(
                first, second, config=settings, workspace_url=workspace, run_id=run, eps=eps
            )
        _print_similarity(answer, as_json)


def neighbors(
    image: Annotated[
        str,
        typer.Argument(
            help="An image of the run (URL, path below the source, or file name) or any other."
        ),
    ],
    run: Annotated[str, typer.Option(help="Run id, as `dedup run` printed it.")],
    workspace: Annotated[str, typer.Option(help="Workspace of the run: a path or any fsspec URL.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours.")] = 10,
    search_k: Annotated[
        int | None,
        typer.Option(min=1, help="Nodes of the index to look at; more find more, but take longer."),
    ] = None,
    html: Annotated[
        str | None, typer.Option(help="Write a page with pictures to this file or URL, too.")
    ] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Find the images of a run that are nearest to an image."""
    refuse_credentials(image, workspace, html)
    with explained_errors():
        from tasks import asking
        from tasks.neighbors_page import publish_page

        with redirect_stdout(sys.stderr):
            answer = asking.neighbors_of(
                image, run_id=run, workspace_url=workspace, k=k, search_k=search_k
            )
        if html is not None:
            publish_page(html, answer, workspace)
        _print_neighbors(answer, as_json)


def _print_similarity(answer: "Similarity", as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(answer)) + "\n")
        return
    print_rows(
        [
            ("similarity", f"{answer.percent:.2f} %" + ", exact copies" * answer.is_exact_copy),
            ("cosine distance", f"{answer.distance:.6f}"),
            ("eps", f"{answer.eps:g}"),
            ("would be merged", _verdict(answer)),
            *(
                (label, f"{printable(image.url)} ({image.origin})")
                for label, image in (("first", answer.first), ("second", answer.second))
            ),
            ("note", "a run never merges images of different partitions; which image of a group"),
            ("", "stays depends on all of them"),
        ]
    )


def _verdict(answer: "Similarity") -> str:
    if answer.would_be_merged:
        return f"yes, at eps {answer.eps:g}"
    if answer.distance > answer.eps:
        return f"no, at eps {answer.eps:g}"
    partitions = f"{answer.first.partition!r} and {answer.second.partition!r}"
    return f"no: of the partitions {partitions}, and images of different ones are never compared"


def _print_neighbors(answer: "Neighborhood", as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(answer)) + "\n")
        return
    print_rows(
        [
            ("run", answer.run_id),
            ("image", f"{printable(answer.image.url)} ({answer.image.origin})"),
            ("eps", f"{answer.eps:g}"),
        ]
    )
    sys.stdout.write("\nsimilarity  distance  within eps  cluster  decision  image\n")
    for found in answer.neighbors:
        near = "exact copy" if found.is_exact_copy else "yes" if found.is_within_eps else "no"
        cluster = "-" if found.cluster_id < 0 else str(found.cluster_id)
        sys.stdout.write(
            f"{found.percent:8.2f} %  {found.distance:.6f}  {near:<10}  {cluster:>7}  "
            f"{found.action:<8}  {printable(found.url)}\n"
        )
