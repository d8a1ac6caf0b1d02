"""The source of Python's standard library as a corpus: real text that needs no network."""

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from transnormer_jax.data.held_out import text_key

_LEFT_OUT = {
    # Not the standard library.
    "site-packages", "dist-packages", "__pycache__",
    # Tests outweigh the library they test, and some are wrong on purpose.
    "test", "tests", "idle_test",
    # Gone from Python 3.13; without it the versions are alike.
    "lib2to3",
    # Generated tables of code points and of help pages.
    "encodings", "pydoc_data",
}  # fmt: skip


class PythonSource:
    """One document per module of the running Python, by a key of its path. A `Corpus` of one part."""

    fingerprint: str = f"python-source-{platform.python_version()}"

    def __len__(self) -> int:
        return 1

    def read(self, part: int) -> Iterator[tuple[int, str]]:
        """See `Corpus`."""
        del part
        for path, text in modules():
            yield text_key(path), text


def modules() -> Iterator[tuple[str, str]]:
    """Yields the path of each module, relative to the library, and its source."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(path.relative_to(library) for path in library.rglob("*.py")):
        # `_sysconfigdata*` is generated too, and full of one machine's paths.
        if _LEFT_OUT.isdisjoint(path.parts) and not path.name.startswith("_sysconfigdata"):
            text = _decoded((library / path).read_bytes())
            if text.strip():
                yield path.as_posix(), text


def _decoded(source: bytes) -> str:
    try:
        return source.decode("utf-8")
    except UnicodeDecodeError:
        return ""  # The few files in another encoding are left out, like the empty ones.
