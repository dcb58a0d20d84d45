"""Reads YAML profiles into the config model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from config.acting import ApplyConfig
from config.fields import Settings
from config.models import DedupConfig

Config = TypeVar("Config", bound=Settings)


class ConfigError(ValueError):
    """A profile or a setting is wrong; the message names the file and every offending setting."""


def load_config(profile: Path | None, overrides: Mapping[str, Any]) -> DedupConfig:
    """Build the config of a run from a profile and what was said beside it.

    Args:
        profile: YAML file with any of the config's settings, or None for the defaults.
        overrides: Settings that win over the profile; nested like the model.

    Returns:
        The validated config.

    Raises:
        ConfigError: The file cannot be read, is not a YAML mapping, or a setting is unknown or
            out of range; names the file and every offending setting.
    """
    return _validated(DedupConfig, merge(_read_profile(profile), overrides), profile)


def load_apply_config(profile: Path | None, overrides: Mapping[str, Any]) -> ApplyConfig:
    """Build the config of an apply from the `apply` section of a profile and what was said.

    Args:
        profile: YAML file as for `load_config`, or None for the defaults.
        overrides: Settings that win over the profile; nested like the model.

    Raises:
        ConfigError: As for `load_config`.
    """
    content = _read_profile(profile)
    unknown = sorted(str(name) for name in content if name not in DedupConfig.model_fields)
    if unknown:
        raise ConfigError(f"config {profile}: unknown settings: {', '.join(unknown)}")
    section = content.get("apply") or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"config {profile}: expected a mapping in apply, found {section!r}")
    return _validated(ApplyConfig, merge(section, overrides), profile)


def _validated(model: type[Config], settings: Mapping[str, Any], profile: Path | None) -> Config:
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        where = f"config {profile}" if profile else "config"
        raise ConfigError(f"{where}: {describe(error)}") from None


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested overrides over nested settings; neither argument is changed."""
    merged = dict(base)
    for name, value in overrides.items():
        nested = merged.get(name)
        if isinstance(nested, Mapping) and isinstance(value, Mapping):
            merged[name] = merge(nested, value)
        else:
            merged[name] = value
    return merged


def describe(error: ValidationError) -> str:
    """One clause per offending setting: its dotted name and what is wrong with it."""
    # `include_input` stays off: a rejected URL may hold a secret.
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(
        ": ".join(
            filter(
                None,
                [".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")],
            )
        )
        for problem in problems
    )


def _read_profile(profile: Path | None) -> Mapping[str, Any]:
    if profile is None:
        return {}
    try:
        content = yaml.safe_load(profile.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {profile}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config {profile} is not YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"config {profile}: expected a mapping of settings, found {content!r}")
    return content
