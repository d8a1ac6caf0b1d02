"""Ends every process of the engine with the process that it works for: import it in the fork server, before it forks.

A process that is killed closes no queue, so its workers and its manager would otherwise wait for ever.
"""

import os
import threading
import time

import multiprocess
from multiprocess.connection import wait


def _end_with_parent() -> None:
    while (parent := multiprocess.parent_process()) is None:  # until the process knows what it is
        time.sleep(0.01)
    wait([parent.sentinel])
    os._exit(1)


os.register_at_fork(after_in_child=lambda: threading.Thread(target=_end_with_parent, daemon=True).start())
