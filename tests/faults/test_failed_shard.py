"""A night with a failed shard through a real worker: its retry embeds what is missing, no more."""

import json
from pathlib import Path

import pytest

from benchmarks.prefect_site import prefect_site
from tasks import storage
from tests.conftest import Night
from tests.faulty_proxy import run_faulty_proxy
from tests.s3_server import S3Server

pytestmark = pytest.mark.faults


def test_retry_of_a_failed_night_embeds_only_what_is_missing(
    s3_server: S3Server, s3_url: str, night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = sorted(night.folder.glob("junction-[12]/*.jpg"))
    for path in frames:
        url = f"{s3_url}/2026-02-28/{path.relative_to(night.folder)}"
        storage.publish_bytes(url, path.read_bytes())
    config = {
        "source_url": f"{s3_url}/{{date}}",
        "workspace_url": f"{s3_url}/workspace",
        "features": {"image_size": 32},
        "execution": {"images_per_shard": 3, "workers": 1, "max_retries": 0},
    }

    def spare(_method: str, target: str) -> bool:
        return "/junction-1/004.jpg" not in target

    faults = {"failure_rate": 1.0, "seed": 7, "kinds": ["500"], "spare": spare}
    with run_faulty_proxy(s3_server.endpoint, **faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with prefect_site(tmp_path) as site:
            run_id = site.schedule("dedup/main", "2026-02-28T03:00:00Z", config=config)
            failed = site.wait_for(run_id)
            num_files = len(storage.list_files(f"{s3_url}/workspace/features"))
            proxy.failure_rate = 0.0
            site.retry(run_id)
            done = site.wait_for(run_id)

    assert failed["state"]["type"] == "FAILED"
    assert "1 of 4 shards failed, 3 images are not embedded: shard 1" in failed["state"]["message"]
    assert num_files == 3
    assert done["state"]["type"] == "COMPLETED", done["state"]["message"]
    (summary,) = (
        json.loads(storage.read_bytes(file.url))
        for file in storage.list_files(f"{s3_url}/workspace/runs")
        if file.url.endswith("summary.json")
    )
    assert (summary["num_images"], summary["num_embedded"]) == (11, 3)
    assert summary["is_complete"]
