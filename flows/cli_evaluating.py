"""The commands that show a run to others: `dedup evaluate`, `dedup export`."""

import typer


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
