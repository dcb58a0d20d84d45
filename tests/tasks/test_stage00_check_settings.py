"""What differs between the settings of two runs, whatever version wrote them down."""

import json

from config import DedupConfig
from tasks.stage00_check_settings import decided_by, differences, named


def test_settings_of_a_version_that_knew_fewer_are_the_defaults() -> None:
    known = {"neighbors": {"eps": 0.05, "n_trees": 30}, "features": {"dtype": "float32"}}
    before = decided_by(json.dumps(known))
    config = DedupConfig(source_url="s", workspace_url="w", features={"dtype": "float32"})
    now = decided_by(json.dumps(config.deciding_settings()))

    assert differences(before, now) == []
    assert "cameras" in now


def test_settings_of_a_version_that_knew_others_are_compared_as_they_are() -> None:
    before = decided_by(json.dumps({"neighbors": {"radius": 1, "eps": 0.05}}))
    now = {"neighbors.eps": 0.05}

    assert differences(before, now) == [("neighbors.radius", None, 1)]


def test_many_and_long_changes_are_said_in_short() -> None:
    changes = [(f"n{number}", "x" * 100, None) for number in range(11)]
    said = named(changes)

    assert said.startswith('n0 "xxx')
    assert said.count("…") == 8
    assert said.endswith("; and 3 more")
