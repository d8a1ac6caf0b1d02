"""Opens a file of text or records: decompressed to its end, and refused if its bytes are no text."""

import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

import fsspec

from transnormer_jax.data.file_kinds import PARQUET, kind_of, suffixes_of
from transnormer_jax.errors import UserError

_HEAD_BYTES = 4096
_BLOCK_BYTES = 1 << 18
_ERRORS = (OSError, EOFError, ValueError, NotImplementedError, lzma.LZMAError, zlib.error)
_UNPACK = "unpack it and give the directory"
_RENAME = "give its name the suffix {}"
_DECOMPRESS = "decompress it, or " + _RENAME
# What begins a file that is no text, and what to do with it.
_SIGNATURES = [
    (b"PK\x03\x04", 0, "a zip archive", _UNPACK),
    (b"PK\x05\x06", 0, "a zip archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", 0, "a rar archive", _UNPACK),
    (b"ustar", 257, "a tar archive", _UNPACK),
    (b"\x1f\x8b", 0, "gzip", _DECOMPRESS.format(".gz")),
    (b"\x28\xb5\x2f\xfd", 0, "Zstandard", _DECOMPRESS.format(".zst")),
    (b"\xfd7zXZ\0", 0, "xz", _DECOMPRESS.format(".xz")),
    *[(b"BZh%d1AY&SY" % level, 0, "bzip2", _DECOMPRESS.format(".bz2")) for level in range(1, 10)],
    (b"PAR1", 0, "Parquet", _RENAME.format(".parquet")),
    (b"%PDF-", 0, "PDF", "extract its text to .txt or JSON lines"),
    # Of UTF-32 first: its mark begins with that of UTF-16.
    (b"\xff\xfe\0\0", 0, "UTF-32", "convert it with `iconv -f UTF-32 -t UTF-8`"),
    (b"\xff\xfe", 0, "UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", 0, "UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"),
]


@contextlib.contextmanager
def open_file(file: str, *, check: bool = True) -> Iterator[IO[bytes]]:
    """Opens a file for reading from its beginning; all members of a compressed one are read.

    Args:
      check: look at the first bytes; not needed by a reader that begins elsewhere.

    Raises:
      UserError: the file does not hold what its name says; or, now or in the body of the `with` statement, it cannot
        be read, is damaged, or ends in the middle of compressed data.
    """
    try:
        with fsspec.open(file, "rb") as raw, contextlib.closing(_decompressed(file, raw)) as opened:
            if check and kind_of(file) != PARQUET:
                _check_is_text(file, opened)
            yield opened
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, _ERRORS) and "pyarrow" not in type(error).__module__:
            raise
        if isinstance(error, EOFError) or "Truncated compressed stream" in str(error):
            raise UserError(f"cannot read {file!r}, which ends too early: replace it with a whole copy.") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {file!r} ({reason}): replace it with an intact, readable file.") from error


def _decompressed(file: str, raw: IO[bytes]) -> IO[bytes]:
    compression = suffixes_of(file)[1]
    if not compression:
        return raw
    if not raw.read(1):
        raise EOFError  # the decompressors take it for no members
    raw.seek(0)
    if compression == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if compression == ".xz":
        return io.BufferedReader(_XzStreams(raw), _BLOCK_BYTES)
    import pyarrow

    # Unlike the packages zstandard and bz2, it reads every frame, and ignores no damaged one.
    stream: Any = pyarrow.CompressedInputStream(raw, {".bz2": "bz2", ".zst": "zstd"}[compression])
    return io.BufferedReader(stream, _BLOCK_BYTES)


class _XzStreams(io.RawIOBase):
    """The content of an .xz file; `lzma.LZMAFile` takes a damaged stream behind a whole one for the end of the file."""

    def __init__(self, raw: IO[bytes]):
        self._raw, self._decoder = raw, lzma.LZMADecompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content:
            packed = b""
            if self._decoder.eof:
                packed = self._decoder.unused_data.lstrip(b"\0")  # streams may be padded
                while not packed:
                    if not (block := self._raw.read(_BLOCK_BYTES)):
                        return 0
                    packed = block.lstrip(b"\0")
                self._decoder = lzma.LZMADecompressor()
            elif self._decoder.needs_input and not (packed := self._raw.read(_BLOCK_BYTES)):
                raise EOFError
            content = self._decoder.decompress(packed, len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _check_is_text(file: str, opened: IO[bytes]) -> None:
    if opened.seekable():
        head = opened.read(_HEAD_BYTES)
        opened.seek(0)
    else:
        head = cast(io.BufferedReader, opened).peek(_HEAD_BYTES)[:_HEAD_BYTES]
    for signature, place, name, mend in _SIGNATURES:
        if head[place : place + len(signature)] == signature:
            raise UserError(f"{file!r} holds {name} and not UTF-8 text: {mend}.")
    if b"\0" in head:
        raise UserError(
            f"{file!r} holds null bytes and not UTF-8 text: leave it out, or convert it if it is text in another "
            "encoding, such as UTF-16."
        )
