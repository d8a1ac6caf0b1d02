"""Checks which hosts see the same files: all must share the workdir; each may have its own prepared data.

A process that sees a file which another has just written shares the directory with it. Names do not tell: every machine
may have a /data of its own.
"""

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
from etils import epath

from transnormer_jax.distributed import multihost
from transnormer_jax.errors import UserError
from transnormer_jax.log import log

# NFS may show a new file only after its caches expire: attributes of directories after at most a minute by default, but
# a name that was never looked up before is asked for at once.
_SECONDS = 5.0


def check_shared(workdir: epath.PathLike) -> None:
    """Checks that all processes see the workdir of process 0; all of them call it.

    Args:
      workdir: local or on a store; made if it does not exist.

    Raises:
      UserError: some do not, or process 0 cannot write there.
    """
    if jax.process_count() == 1:
        return
    directory = epath.Path(workdir)
    written = multihost.broadcast_from_process0(_write_probe(directory) if jax.process_index() == 0 else None)
    name, problem = written
    if problem:
        raise UserError(f"process 0 cannot write into workdir {str(workdir)!r} ({problem}): choose another --workdir.")
    seen = multihost.all_gather([_hostname(), bool(_appear(directory, [name]))], "looking for the workdir")
    if jax.process_index() == 0:
        with suppress(OSError):
            (directory / name).unlink()
    blind = sorted({host for host, sees in seen if not sees})
    if blind:
        raise UserError(
            f"workdir {str(workdir)!r} of {seen[0][0]} is not seen by {_join_names(blind)}: all processes need the "
            "same one, so give a directory of a shared file system or of a bucket."
        )


@contextmanager
def prepared_once(data_dir: str) -> Iterator[None]:
    """Runs the body, which prepares data in `data_dir`, once for every file system, then in all other processes.

    Where all hosts see the same directory, process 0 prepares and the others read. Where every host has its own, the
    first process of each prepares, all at the same time.

    Args:
      data_dir: of the configuration; empty for TFDS's own.
    """
    if jax.process_count() == 1:
        yield
        return
    if _prepares(epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()):
        yield
        multihost.barrier("preparing the data")
    else:
        multihost.barrier("preparing the data")
        yield


def check_same_data(description: str, row: Any) -> None:
    """Checks that all processes have opened the same data.

    Args:
      description: of the data, such as their numbers of documents and tokens.
      row: some of it, a tree of arrays.

    Raises:
      UserError: some have others.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(row):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    found = multihost.all_gather([_hostname(), f"{description}; first row {digest.hexdigest()[:12]}"])
    groups: dict[str, set[str]] = {}
    for host, text in found:
        groups.setdefault(text, set()).add(host)
    if len(groups) > 1:
        differing = "; ".join(f"{_join_names(sorted(hosts))}: {text}" for text, hosts in groups.items())
        raise UserError(
            f"the hosts have prepared different data ({differing}): give all of them the same files, and remove the "
            "data_dir of those that are wrong."
        )


def _prepares(directory: epath.Path) -> bool:
    """Whether this process prepares; who does is found by a file that the first process of every host writes."""
    token = multihost.broadcast_from_process0(secrets.token_hex(4))
    hosts = multihost.all_gather(_hostname())
    first = {host: hosts.index(host) for host in sorted(set(hosts))}
    own = jax.process_index()
    names = {process: f".seen_by_hosts_{token}_{process}" for process in sorted(first.values())}
    if own in names:
        with suppress(OSError):  # a directory that is only read
            directory.mkdir(parents=True, exist_ok=True)
            (directory / names[own]).write_text(token)
    multihost.barrier("looking for the data")
    present = _appear(directory, list(names.values()))
    seen = [process for process, name in names.items() if name in present]
    leader = min(seen, default=first[_hostname()])
    leaders = sorted(set(multihost.all_gather(leader, "looking for the data")))
    if own in names:
        with suppress(OSError):
            (directory / names[own]).unlink()
    if len(leaders) == 1:
        log(f"the hosts share {str(directory)!r}: process {leaders[0]} prepares the data, the others read them")
    else:
        log(
            f"the hosts do not share {str(directory)!r}: {len(leaders)} processes prepare the data, one for each: "
            f"{', '.join(map(str, leaders[:8]))}{' ...' if len(leaders) > 8 else ''}"
        )
    return own in leaders


def _write_probe(directory: epath.Path) -> tuple[str, str]:
    """Writes a file; its name, and why it cannot be written."""
    name = f".seen_by_hosts_{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps(_hostname()))
    except Exception as error:  # stores have errors of their own
        return name, str(getattr(error, "strerror", None) or error)
    return name, ""


def _appear(directory: epath.Path, names: list[str]) -> list[str]:
    """Returns which of these files are there; waits some seconds for those that are not."""
    end = time.monotonic() + _SECONDS
    while True:
        seen = [name for name in names if (directory / name).exists()]
        if len(seen) == len(names) or time.monotonic() > end:
            return seen
        time.sleep(0.25)


def _hostname() -> str:
    return socket.gethostname().partition(".")[0]


def _join_names(hosts: list[str]) -> str:
    return ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
