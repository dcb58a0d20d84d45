"""The files for containers say what the others say; no cluster is needed to see that."""

import json
from pathlib import Path
from typing import Any

import yaml

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"


def deployments(name: str) -> dict[str, dict[str, Any]]:
    """All that a file of deployments says of each, by its entry point."""
    content = yaml.safe_load((DEPLOYMENTS / name).read_text())
    return {each["entrypoint"]: each for each in content["deployments"]}


def test_deployments_are_those_of_the_process_pool() -> None:
    ours, others = deployments("prefect-kubernetes.yaml"), deployments("prefect.yaml")
    assert ours.keys() == others.keys()
    for name, other in others.items():
        pool, other_pool = ours[name].pop("work_pool"), other.pop("work_pool")
        assert ours[name] == other
        environment = pool["job_variables"]["env"]
        assert environment.items() >= other_pool["job_variables"]["env"].items()


def test_runs_have_no_rights_and_take_what_the_deployments_give() -> None:
    template = json.loads((DEPLOYMENTS / "kubernetes/base-job-template.json").read_text())
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    content = yaml.safe_load((DEPLOYMENTS / "prefect-kubernetes.yaml").read_text())
    given = {name for each in content["deployments"] for name in each["work_pool"]["job_variables"]}
    assert given <= template["variables"]["properties"].keys()


def test_worker_may_start_jobs_and_nothing_else() -> None:
    worker = list(yaml.safe_load_all((DEPLOYMENTS / "kubernetes/worker.yaml").read_text()))
    (role,) = (each for each in worker if each["kind"] == "Role")
    changing = {
        resource
        for rule in role["rules"]
        for resource in rule["resources"]
        if set(rule["verbs"]) - {"get", "list", "watch"}
    }
    assert changing == {"jobs"}
    (deployment,) = (each for each in worker if each["kind"] == "Deployment")
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"]
