"""Directories that appear at once and whole: a killed or failed run leaves none, and of racing processes one wins."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def publish(directory: Path, write: Callable[[Path], None]) -> None:
    """Makes `directory` with what `write` puts into the empty directory it is given.

    Raises:
      OSError: the disk refuses.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=directory.parent) as scratch:
        written = Path(scratch) / "contents"
        written.mkdir()
        write(written)
        try:
            os.rename(written, directory)
        except OSError:
            # Another process finished the same work first.
            if not directory.exists():
                raise
