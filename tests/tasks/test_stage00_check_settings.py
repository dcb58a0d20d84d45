"""What differs between the settings of two runs, whatever version wrote them down."""

import json

import pytest

from config import DedupConfig
from tasks.stage00_check_settings import (
    decided_by,
    differences,
    features_by,
    named,
    of_config,
)


def config_with(**said: object) -> DedupConfig:
    return DedupConfig.model_validate({"source_url": "s", "workspace_url": "w", **said})


def test_settings_of_a_version_that_knew_fewer_are_the_defaults() -> None:
    known = {"neighbors": {"eps": 0.05, "n_trees": 30}, "features": {"dtype": "float32"}}
    before = decided_by({"config": json.dumps(known)})
    now = decided_by(of_config(config_with(features={"dtype": "float32"})))

    assert differences(before, now) == []
    assert "cameras" in now


def test_settings_of_a_version_that_knew_others_are_compared_as_they_are() -> None:
    before = decided_by({"config": json.dumps({"neighbors": {"radius": 1, "eps": 0.05}})})
    now = {"neighbors.eps": 0.05}

    assert differences(before, now) == [("neighbors.radius", 1, None)]


@pytest.mark.parametrize("name", ["weights_digest", "schema_version"])
def test_features_depend_on_weights_and_schema(name: str) -> None:
    now = of_config(config_with())

    assert differences(features_by(now | {name: "old"}), features_by(now)) == [
        (name, "old", now[name])
    ]


def test_exponent_matters_to_generalised_mean_pooling_only() -> None:
    def found(pooling: str) -> object:
        return features_by(of_config(config_with(features={"pooling": pooling}))).get(
            "features.gem_p"
        )

    assert (found("avg"), found("gem")) == (None, 3.0)


def test_many_and_long_changes_are_said_in_short() -> None:
    changes = [(f"n{number}", None, "x" * 100) for number in range(11)]
    said = named(changes)

    assert said.startswith('n0 null, now "xxx')
    assert said.count("…") == 8
    assert said.endswith("; and 3 more")
    assert named([]) == "another version of the code that computes features"
