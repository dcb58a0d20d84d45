"""Real servers and real photographs, shared by all tests."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

# Read when Prefect is imported. A home of its own, so that no test touches the user's.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="dedup-tests-prefect-")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
os.environ["DO_NOT_TRACK"] = "1"
os.environ.pop("PREFECT_API_URL", None)
for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
    del os.environ[name]

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from prefect.testing.utilities import prefect_test_harness  # noqa: E402

from benchmarks.demo_night import GroundTruth, lay_out_night  # noqa: E402
from tests.one_bucket import as_client, make_bucket, one_bucket  # noqa: E402
from tests.s3_server import S3Server, run_s3_server  # noqa: E402

# The machine that runs the tests may be slow; no test is about time.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@dataclass(frozen=True)
class Night:
    """A laid-out night of photographs."""

    folder: Path
    truth: GroundTruth


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The demo's night: read it, never change it."""
    folder = tmp_path_factory.mktemp("night") / "images"
    return Night(folder, lay_out_night(folder))


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server that all flows of the session share."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with run_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server) -> Iterator[str]:
    """A fresh bucket, with the environment of a client that may do everything."""
    with one_bucket(s3_server) as url:
        yield url


@pytest.fixture(scope="session")
def shared_bucket(s3_server: S3Server) -> str:
    """One bucket for many tests: to make one takes longer than most of them."""
    with as_client(s3_server.admin):
        return make_bucket()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder: once on the local disk, once on S3."""
    if request.param == "local":
        yield str(tmp_path)
    else:
        bucket_url: str = request.getfixturevalue("shared_bucket")
        with as_client(request.getfixturevalue("s3_server").admin):
            yield f"{bucket_url}/{uuid4().hex}/place"
