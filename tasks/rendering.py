"""Fills the templates of pages and plots; whatever comes in is escaped."""

from functools import lru_cache
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Fill a template of `tasks/templates`.

    Args:
        template: Its file name.
        values: What it asks for; anything missing is an error.
    """
    return _environment().get_template(template).render(values)


@lru_cache
def _environment() -> jinja2.Environment:
    return new_environment()


def new_environment() -> jinja2.Environment:
    """What fills templates, for those who give it globals of their own."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("tasks", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
