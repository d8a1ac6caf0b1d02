"""Lines of a run's log: when, on which host, what."""

import socket
import sys
import time

import jax


def log(message: str, *, everywhere: bool = False) -> None:
    """Prints `message` with the time of day and the host's name.

    Args:
      everywhere: every process prints it, to stderr; otherwise process 0 alone, to stdout.
    """
    host = socket.gethostname().partition(".")[0]
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {host} | {message}"
    if everywhere:
        print(line, file=sys.stderr, flush=True)
    elif jax.process_index() == 0:
        print(line, flush=True)
