"""What all commands share: messages for people, one clear error, an exit status."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from config.fields import Url
from config.profiles import describe
from flows.logs import OWN_LOGGERS

to_people = Console(stderr=True)

EXIT_FAILED = 1
EXIT_USAGE = 2


@contextmanager
def explained_errors() -> Iterator[None]:
    """One clear message for what a user can mend; a stack trace only for our own faults."""
    from botocore.exceptions import BotoCoreError

    from tasks.errors import DedupError, is_transient

    try:
        yield
    except DedupError as error:
        fail(str(error), EXIT_FAILED)
    except Exception as error:
        # An answer that breaks off is an error of aiohttp, which is no OSError.
        if not isinstance(error, OSError | BotoCoreError) and not is_transient(error):
            raise
        fail(f"{type(error).__name__}: {error}", EXIT_FAILED)


def fail(message: str, status: int) -> NoReturn:
    """Say what is wrong and end with an exit status."""
    to_people.print(
        f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True
    )
    raise typer.Exit(status)


def named_manifest(what: str, workspace: str | None) -> str:
    """The URL of the manifest that a user means by a URL, or by a run id and its workspace."""
    if what.endswith(".parquet"):
        return what
    if workspace is None:
        fail(f"{what} is no manifest (*.parquet); to name a run, give its --workspace", EXIT_USAGE)
    from tasks.manifests import manifest_url_of

    return manifest_url_of(workspace, what)


class _LinesAboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        to_people.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def show_own_log() -> None:
    """Print our own log lines for people."""
    handler = _LinesAboveTheBar()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in OWN_LOGGERS:
        own = logging.getLogger(name)
        own.setLevel(logging.INFO)
        own.addHandler(handler)
        own.propagate = False  # Prefect's console handler would print every line again


def without_none(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop what was not said, so that the profile or the default stands."""
    said = {
        name: without_none(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if value is not None
    }
    return {name: value for name, value in said.items() if value != {}}


def printable(text: str) -> str:
    """A file name as one line of text, whatever characters it has."""
    return text if text.isprintable() else repr(text)


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Print labelled values, one a line."""
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        sys.stdout.write(f"{label:<{width}}  {value}\n")


def refuse_credentials(*urls: str | None) -> None:
    """End with wrong usage when a URL carries a secret, which would be printed and logged."""
    for url in filter(None, urls):
        try:
            # A file name need not be valid UTF-8; only the secret is looked for.
            TypeAdapter(Url).validate_python(url.encode(errors="replace").decode())
        except ValidationError as error:
            fail(describe(error), EXIT_USAGE)
