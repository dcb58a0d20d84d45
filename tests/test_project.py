"""The project as a whole: packages, lock, profiles, links."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

from config import DedupConfig, MaintenanceConfig
from flows.events import PREFIX
from tasks.summary import Alert

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", ["config", "flows", "tasks"])
def test_packages_with_common_names_are_ours(package: str) -> None:
    assert Path(importlib.import_module(package).__file__ or "").parent == ROOT / package


def test_importing_the_flow_does_not_import_tensorflow() -> None:
    script = "import sys, flows.dedup; print('tensorflow' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert finished.stdout == "False\n"


def test_lock_pins_what_works_together() -> None:
    pins = dict(
        re.findall(
            r"^([a-z0-9-]+)==(\d+(?:\.\d+)*)", (ROOT / "requirements/lock.txt").read_text(), re.M
        )
    )
    version = {name: tuple(map(int, pin.split("."))) for name, pin in pins.items()}
    # Prefect 3.8 dies with newer FastAPI; with SQLAlchemy 2.1 its schedules silently never fire.
    assert (3, 8, 8) <= version["prefect"] < (3, 10)
    assert version["fastapi"] < (0, 151)
    assert version["sqlalchemy"] < (2, 1)


def test_lock_names_no_package_index() -> None:
    for lock in (ROOT / "requirements").iterdir():
        assert "://" not in lock.read_text()


def test_automations_are_valid_and_hear_of_every_alert() -> None:
    said = yaml.safe_load((ROOT / "deployments/automations.yaml").read_text())
    automations = {a.name: a for a in map(AutomationCore.model_validate, said["automations"])}
    assert list(automations) == [
        *("image-dedup alerts", "image-dedup failed runs"),
        *("image-dedup lost runs", "image-dedup night overdue"),
    ]
    alerts = get_args(Alert.model_fields["name"].annotation)
    assert automations["image-dedup alerts"].trigger.expect == {
        PREFIX + name for name in (*alerts, "guard.tripped")
    }
    blocks = {
        action.block_document_id.int
        for automation in automations.values()
        for action in automation.actions
        if action.type == "call-webhook"
    }
    assert blocks == {0}  # a person puts in their own


def test_deployments_carry_valid_configs() -> None:
    prefect = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())
    model_of = {
        "flows.dedup.dedup": DedupConfig,
        "flows.maintenance.maintenance": MaintenanceConfig,
    }
    configs = [
        model_of[deployment["entrypoint"]].model_validate(deployment["parameters"]["config"])
        for deployment in prefect["deployments"]
        if "parameters" in deployment
    ]
    assert [config.workspace_url for config in configs] == ["s3://cameras/dedup"] * 2


@pytest.mark.parametrize("profile", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_profiles_are_valid(profile: Path) -> None:
    urls = {"source_url": "/images", "workspace_url": "/workspace"}
    DedupConfig.model_validate(urls | yaml.safe_load(profile.read_text()))
