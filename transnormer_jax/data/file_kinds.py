"""What the name of a file says: plain text, JSON lines, JSON or Parquet, compressed or not, or nothing we can read."""

from pathlib import PurePosixPath

TEXT, JSON_LINES, JSON, PARQUET = "text", "JSON lines", "JSON", "Parquet"

# A directory holds documents under these names; any other name is reached by a pattern, and is plain text.
_KINDS = {
    ".txt": TEXT,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".jsonlines": JSON_LINES,
    ".json": JSON,
    ".parquet": PARQUET,
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_UNREADABLE = {
    "unpack it and give the directory": ".zip .tar .tgz .tbz .tbz2 .txz .tzst .7z .rar .jar",
    "decompress it, or compress it as .gz, .bz2, .xz or .zst": ".lz4 .z .lzma .lzo .br .sz .snappy .zstd",
    "convert it to Parquet or JSON lines": ".csv .tsv .xls .xlsx .ods .arrow .feather .orc .avro .sqlite .db",
    "extract its text to .txt or JSON lines": (
        ".pdf .doc .docx .odt .rtf .epub .ppt .pptx .html .htm .xhtml .xml .ipynb"
    ),
    "it holds no text, so leave it out": (
        ".npy .npz .pkl .pickle .pt .pth .ckpt .safetensors .gguf .onnx .bin .h5 .hdf5 .mat .tfrecord .array_record "
        ".model .pyc .so .o .a .exe .dll .png .jpg .jpeg .gif .webp .mp3 .wav .flac .mp4"
    ),
}
_ADVICE = {suffix: advice for advice, suffixes in _UNREADABLE.items() for suffix in suffixes.split()}


def suffixes_of(file: str) -> tuple[str, str]:
    """Returns the suffixes of the kind and of the compression in lower case; "" for one that is not there."""
    path = file.partition("?")[0] if "://" in file else file  # the query of a URL is no suffix
    name = PurePosixPath(path.replace("\\", "/").lower())
    compression = name.suffix if name.suffix in COMPRESSIONS else ""
    return PurePosixPath(name.name.removesuffix(compression)).suffix, compression


def kind_of(file: str) -> str:
    """Returns TEXT, JSON_LINES, JSON or PARQUET; a name that says nothing is that of plain text."""
    return _KINDS.get(suffixes_of(file)[0], TEXT)


def is_document_name(file: str) -> bool:
    """Whether a file is read when the directory above it is named."""
    return suffixes_of(file)[0] in _KINDS and not advice_against(file)


def advice_against(file: str) -> str:
    """Returns what to do with a file whose name says that it is no plain text, JSON or Parquet; "" if it may be."""
    suffix, compression = suffixes_of(file)
    if suffix == ".parquet" and compression:
        return "decompress it, since Parquet is compressed inside"
    return _ADVICE.get(suffix, "")


def label_of(file: str) -> str:
    """Returns the suffixes of a file, for counts by suffix."""
    return "".join(suffixes_of(file)) or "without suffix"
