"""Settings of acting: by default it only looks, and nothing is waived."""

from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from config import (
    ActingSettings,
    ApplyConfig,
    ApplySettings,
    ConfigError,
    GuardSettings,
    load_apply_config,
    parse_duration,
)


def config(**settings: Any) -> ApplyConfig:
    return load_apply_config(None, {"manifest_url": "/m.parquet"} | settings)


def complaint(**settings: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        config(**settings)
    return str(refusal.value)


def test_only_the_manifest_is_needed_and_nothing_is_done_or_waived() -> None:
    assert config().model_dump() == {
        "manifest_url": "/m.parquet",
        "workspace_url": None,
        "action": "quarantine",
        "copy_to_url": None,
        "only": "all",
        "quarantine_url": None,
        "verify": "auto",
        "execute": False,
        "approval": "never",
        "approval_timeout": "3d",
        "guards": {
            "allow_partial": False,
            "allow_orphans": False,
            "allow_gated": False,
            "allow_unlocked": False,
            "max_removed_fraction": 0.98,
            "max_manifest_age": "7d",
        },
        "acting": {"workers": 16, "images_per_batch": 500, "lock_seconds": 60.0},
    }
    with pytest.raises(ConfigError, match=r"^config: manifest_url: Field required$"):
        load_apply_config(None, {})


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"delete": True}, "delete"),
        ({"guards": {"allow_everything": True}}, "guards.allow_everything"),
        ({"acting": {"worker": 2}}, "acting.worker"),
    ],
)
def test_unknown_setting_is_named_with_its_path(settings: dict[str, Any], name: str) -> None:
    assert complaint(**settings) == f"config: {name}: Extra inputs are not permitted"


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("guards", "max_removed_fraction", -0.01),
        ("guards", "max_removed_fraction", 1.01),
        ("guards", "max_removed_fraction", float("nan")),
        ("guards", "max_removed_fraction", float("inf")),
        ("guards", "max_removed_fraction", None),
        ("guards", "allow_partial", "perhaps"),
        ("acting", "workers", 0),
        ("acting", "workers", 257),
        ("acting", "images_per_batch", 0),
        ("acting", "images_per_batch", 10_001),
        ("acting", "lock_seconds", 0.9),
        ("acting", "lock_seconds", 3_601),
        ("acting", "lock_seconds", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused(section: str, name: str, value: object) -> None:
    assert complaint(**{section: {name: value}}).startswith(f"config: {section}.{name}: Input")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("action", "delete"),
        ("only", "remove"),
        ("verify", "never"),
        ("approval", "always"),
        ("execute", None),
    ],
)
def test_settings_that_are_none_of_the_choices_are_refused(name: str, value: object) -> None:
    assert complaint(**{name: value}).startswith(f"config: {name}: Input should be")


@pytest.mark.parametrize(
    "settings",
    [
        {"action": "copy"},
        {"copy_to_url": "/to"},
        {"action": "permanent", "copy_to_url": "/to"},
        {"action": "quarantine", "copy_to_url": "/to", "only": "keep"},
    ],
)
def test_copying_says_where_and_nothing_else_does(settings: dict[str, str]) -> None:
    assert complaint(**settings) == ("config: copy_to_url goes with action: copy, and only with it")


@pytest.mark.parametrize("action", ["quarantine", "permanent"])
def test_only_what_is_kept_can_be_copied_but_not_removed(action: str) -> None:
    assert complaint(action=action, only="keep") == "config: only: keep goes with action: copy"
    assert config(action="copy", copy_to_url="/to", only="keep").only == "keep"


@pytest.mark.parametrize("name", ["manifest_url", "workspace_url", "quarantine_url", "copy_to_url"])
def test_credentials_in_a_url_are_refused_and_not_repeated(name: str) -> None:
    message = complaint(**{name: "s3://AKIAKEY:hunter2@bucket/night"})
    assert f"{name}: the URL carries credentials" in message
    assert "hunter2" not in message
    assert "AKIAKEY" not in message


@pytest.mark.parametrize("name", ["workspace_url", "quarantine_url", "copy_to_url"])
def test_empty_url_is_refused(name: str) -> None:
    assert f"{name}: String should have at least 1 character" in complaint(**{name: ""})


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"approval_timeout": "soon"}, "approval_timeout"),
        ({"guards": {"max_manifest_age": "soon"}}, "guards.max_manifest_age"),
    ],
)
def test_duration_that_is_none_is_refused(settings: dict[str, Any], path: str) -> None:
    assert complaint(**settings) == (
        f"config: {path}: expected a duration such as 90s, 10m, 36h or 30d, found 'soon'"
    )


@pytest.mark.parametrize("settings", [config(), config().guards, config().acting])
def test_settings_are_frozen(settings: ApplySettings | GuardSettings | ActingSettings) -> None:
    name = next(iter(type(settings).model_fields))
    with pytest.raises(ValidationError, match="Instance is frozen"):
        setattr(settings, name, getattr(settings, name))


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "duration"),
        [
            ("0s", timedelta(0)),
            ("90s", timedelta(seconds=90)),
            ("10m", timedelta(minutes=10)),
            ("36h", timedelta(hours=36)),
            ("30d", timedelta(days=30)),
            ("007d", timedelta(days=7)),
            ("999999d", timedelta(days=999_999)),
        ],
    )
    def test_are_a_number_and_a_unit(self, text: str, duration: timedelta) -> None:
        assert parse_duration(text) == duration

    @pytest.mark.parametrize(
        "text",
        [
            "", "7", "d", "-7d", "+7d", "7.5d", "7 d", " 7d", "7d ", "7d\n", "7D", "7w", "1d12h",
            "1e3s", "1000000d", "0x7d",
        ],
    )  # fmt: skip
    def test_that_are_anything_else_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^expected a duration such as 90s") as refusal:
            parse_duration(text)
        assert repr(text) in str(refusal.value)

    @given(st.integers(0, 999_999), st.sampled_from("smhd"))
    def test_are_exact(self, number: int, unit: str) -> None:
        seconds = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[unit]
        assert parse_duration(f"{number}{unit}") == timedelta(seconds=number * seconds)

    @given(st.text())
    def test_any_text_is_a_duration_or_refused(self, text: str) -> None:
        with suppress(ValueError):
            assert parse_duration(text) >= timedelta(0)
