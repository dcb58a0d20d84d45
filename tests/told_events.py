"""The events of runs, as the server of the tests keeps them."""

import time
from typing import Any

from prefect.client.orchestration import get_client


def told_events(*names: str, flow_run_id: object = None) -> list[dict[str, Any]]:
    """Wait until there are events of all these names, and give them in this order.

    Args:
        names: Without `image-dedup.`.
        flow_run_id: Only those of this run, and then none of other names are there.
    """
    wanted = [f"image-dedup.{name}" for name in names]
    asked: dict[str, Any] = {"event": {"name": wanted}}
    if flow_run_id is not None:
        asked = {"event": {"prefix": ["image-dedup."]}}
        asked |= {"resource": {"id": [f"prefect.flow-run.{flow_run_id}"]}}
    found: list[dict[str, Any]] = []
    for _ in range(60):
        with get_client(sync_client=True) as client:
            answer = client.request("POST", "/events/filter", json={"filter": asked})
        found = answer.json()["events"]
        if {event["event"] for event in found} >= set(wanted):
            return sorted(found, key=lambda event: wanted.index(event["event"]))
        time.sleep(0.25)
    raise AssertionError(f"expected {wanted}, found {found}")


def assert_told(name: str, payload: dict[str, Any]) -> None:
    """Wait until there is an event with just this payload, among those of other runs."""
    payloads: list[dict[str, Any]] = []
    for _ in range(60):
        payloads = [event["payload"] for event in told_events(name)]
        if payload in payloads:
            return
        time.sleep(0.25)
    raise AssertionError(f"expected {payload}, found {payloads}")
