"""What all settings are made of: a strict base, and text that is checked for what it must be."""

import re
from datetime import timedelta
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of all settings: immutable, and a misspelt name is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a rejected URL may hold a secret
    )


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

# user:secret@; a port is no secret, and a secret may well contain a slash.
_CREDENTIALS = re.compile(r"^[^/]*://[^/@]*:(?!\d+(?:/|$)).*@")


_SCHEMES_WITH_USERS = ("abfs", "abfss", "sftp", "ssh")


def _without_credentials(url: str) -> str:
    scheme, _, rest = url.rpartition("::")[2].partition("://")
    names_user = "@" in rest.partition("/")[0] and scheme not in _SCHEMES_WITH_USERS
    if names_user or _CREDENTIALS.match(url):
        # The message must not repeat the URL: it holds the secret.
        raise ValueError(
            "the URL carries credentials, which would end up in logs and manifests; "
            "give them through the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE)"
        )
    return url


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(
            f"expected an IANA time zone such as Europe/Berlin, found {name!r}"
        ) from None
    return name


def _suffix(suffix: str) -> str:
    if not suffix.startswith("."):
        raise ValueError(f"expected a suffix that starts with a dot, found {suffix!r}")
    return suffix.lower()


def parse_duration(text: str) -> timedelta:
    """Read a duration such as `90s`, `10m`, `36h` or `30d`.

    Raises:
        ValueError: It is something else.
    """
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise ValueError(f"expected a duration such as 90s, 10m, 36h or 30d, found {text!r}")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _duration(text: str) -> str:
    parse_duration(text)
    return text


Url = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials)]
Pattern = Annotated[str, AfterValidator(_regular_expression)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Suffix = Annotated[str, AfterValidator(_suffix)]
Duration = Annotated[str, AfterValidator(_duration)]
