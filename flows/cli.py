"""The `dedup` command. Exit status: 0 done, 1 failed, 2 wrong usage."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from config import ConfigError, DedupConfig, load_config
from flows import (
    cli_acting,
    cli_asking,
    cli_evaluating,
    cli_history,
    cli_library,
    cli_reviewing,
    cli_serving,
)
from flows.console import (
    EXIT_USAGE,
    explained_errors,
    fail,
    named_manifest,
    print_rows,
    show_own_log,
    to_people,
    without_none,
)
from flows.progress import watched_by
from flows.temporary_server import ensure_server

if TYPE_CHECKING:
    from tasks.summary import Summary

app = typer.Typer(
    help="Find what is redundant among camera images, and get rid of it safely.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli_acting.add_commands(app)
cli_library.add_commands(app)
cli_history.add_commands(app)
cli_asking.add_commands(app)
cli_evaluating.add_commands(app)
cli_reviewing.add_commands(app)
cli_serving.add_commands(app)


def main() -> None:
    """Entry point of the `dedup` command."""
    _prepare_environment()
    app()


@app.command()
def run(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of images: a path or any fsspec URL. {date} and {yesterday} are filled in."
        ),
    ],
    workspace: Annotated[
        str,
        typer.Option(help="Folder for features, manifests and reports: a path or any fsspec URL."),
    ],
    config: Annotated[
        Path | None, typer.Option(help="YAML profile; the options beside it win.")
    ] = None,
    eps: Annotated[
        float | None, typer.Option(help="Largest cosine distance that joins two images.")
    ] = None,
    min_samples: Annotated[
        int | None, typer.Option(help="Images within eps, itself included, that make a core image.")
    ] = None,
    keepers: Annotated[str | None, typer.Option(help="cover or first.")] = None,
    partition_by: Annotated[
        str | None,
        typer.Option(
            help="Regular expression on the path; only images of one partition are compared."
        ),
    ] = None,
    suffix: Annotated[
        list[str] | None,
        typer.Option(help="File ending that counts as an image; repeatable. '*' takes every file."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="tensorflow or openvino.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16, or int8 with openvino.")
    ] = None,
    gate: Annotated[
        bool | None,
        typer.Option(
            "--gate/--no-gate",
            help="Let a frame that hardly differs take the feature of the one before.",
        ),
    ] = None,
    library: Annotated[
        bool | None,
        typer.Option(
            "--library/--no-library", help="Compare with what earlier nights kept (the default)."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels of what VGG16 sees.")
    ] = None,
    images_per_shard: Annotated[
        int | None, typer.Option(help="Images that one embed task handles.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Tasks that run at the same time.")] = None,
    weights: Annotated[str | None, typer.Option(help="File with the VGG16 weights.")] = None,
    price_per_image: Annotated[
        float | None, typer.Option(help="Cost of annotating one image.")
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial", help="Write a manifest even when shards failed; it says so."
        ),
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Go on although other settings than before leave the library behind, or decide a "
            "night of it anew.",
        ),
    ] = False,
    day: Annotated[
        datetime | None,
        typer.Option(
            "--date", formats=["%Y-%m-%d"], help="Day that {date} stands for; today by default."
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the summary as one JSON object on standard output."),
    ] = False,
    verbose: Annotated[  # noqa: ARG001 (read before Prefect is imported, see _prepare_environment)
        bool, typer.Option("--verbose", help="Show Prefect's own log too.")
    ] = False,
) -> None:
    """Embed a folder of images, find what is redundant, and write manifest and report."""
    overrides = without_none(
        {
            "source_url": source,
            "workspace_url": workspace,
            "price_per_image": price_per_image,
            "allow_partial": allow_partial or None,
            "rebuild": rebuild or None,
            "source": {"partition_by": partition_by, "suffixes": _suffixes(suffix)},
            "features": {"engine": engine, "dtype": dtype, "image_size": image_size},
            "gate": {"enabled": gate},
            "library": {"enabled": library},
            "neighbors": {"eps": eps},
            "clusters": {"min_samples": min_samples, "keepers": keepers},
            "execution": {
                "images_per_shard": images_per_shard,
                "workers": workers,
                "weights_path": weights,
            },
        }
    )
    try:
        settings = load_config(config, overrides)
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    settings = settings.for_night(day.date() if day else _today(settings))
    # Ray says on standard output that a worker died; there is room for the summary only.
    with explained_errors(), _shown_progress(), redirect_stdout(sys.stderr):
        # Importing the stages takes about as long as the server takes to start.
        ensure_server(meanwhile=lambda: importlib.import_module("flows.dedup"))
        from flows.dedup import dedup

        summary = dedup(settings)
    _print_summary(summary, as_json)


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            help="A run id (with --workspace) or the URL of a manifest.", metavar="RUN|MANIFEST"
        ),
    ],
    workspace: Annotated[str | None, typer.Option(help="Workspace that the run is in.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the manifest as CSV.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object.")
    ] = False,
) -> None:
    """Show the summary of a run, or its manifest as CSV."""
    with explained_errors():
        from tasks.history import read_alerts
        from tasks.manifests import read_manifest, write_csv

        manifest_url = named_manifest(what, workspace)
        manifest = read_manifest(manifest_url)
        if as_csv:
            write_csv(manifest.table, sys.stdout.buffer)
        else:
            alerts = read_alerts(manifest_url, manifest.summary.run_id)
            _print_summary(manifest.summary.model_copy(update={"alerts": alerts}), as_json)


@app.command()
def compact(
    workspace: Annotated[
        str, typer.Option(help="Workspace whose small files are merged: a path or an S3 URL.")
    ],
) -> None:
    """Merge the small files of many nights, of features and of the library, into few large ones.

    Nights may run beside it.
    """
    with explained_errors():
        from tasks.compact_features import compact_features
        from tasks.merge_library import merge_libraries

        show_own_log()
        for done in [*compact_features(workspace), *merge_libraries(workspace)]:
            sys.stdout.write(f"{done.num_files_before} -> {done.num_files}  {done.folder_url}\n")


def _prepare_environment() -> None:
    """Defaults for Prefect, read when it is imported; what the user has set wins."""
    defaults = {
        # Without a server Prefect starts one for the run, which takes its time on a new machine.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,flows",
        # `dedup review` runs stages as plain functions, outside any flow.
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "--verbose" not in sys.argv:
        # Its errors come back as exceptions, which are explained below.
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} images/s")


class _ProgressBar:
    """Shows the embedding on standard error, with rate and time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("embedding", total=None, visible=False)

    def start(self, num_images: int) -> None:
        self._progress.reset(self._task, total=num_images, visible=num_images > 0)

    def advance(self, num_images: int) -> None:
        self._progress.advance(self._task, num_images)


@contextmanager
def _shown_progress() -> Iterator[None]:
    show_own_log()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(
            *columns, console=to_people, transient=True, disable=not to_people.is_terminal
        ) as progress,
        watched_by(_ProgressBar(progress)),
    ):
        yield


def _print_summary(summary: "Summary", as_json: bool) -> None:
    from tasks.summary import summary_rows

    if as_json:
        sys.stdout.write(summary.model_dump_json() + "\n")
        return
    print_rows(summary_rows(summary))


def _suffixes(given: list[str] | None) -> list[str] | None:
    if not given:
        return None
    return [] if "*" in given else given


def _today(config: DedupConfig) -> date:
    return datetime.now(ZoneInfo(config.time_zone)).date()
