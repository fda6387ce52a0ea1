"""What a file is by its first bytes, for the messages that refuse it, and how images in it become data."""

from __future__ import annotations

import ast
import re
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

LOOKED_AT = 4096  # bytes
FEW = 4  # arrays or columns that a line names

TO_FILES = (
    "save its images as files, one folder per class (train/CLASS/0.png, test/CLASS/0.png), for example with "
    "PIL.Image.fromarray, and give that folder"
)
TO_PARQUET = "write its images into a .parquet file (columns image: bytes, label), or save them in one folder per class"
UNPACK = "unpack it and give the folder of images"
FOLDER = "give a folder of images, one folder per class, or a .parquet or .beton file"
SAVE_AS = "save images as PNG or JPEG, one folder per class"
IN_ITS_FOLDER = "give the folder that it lies in"
AGAIN = "download it again"


class FileKind(NamedTuple):
    """``what``: in words, '' where nothing is known. ``fix``: how it becomes data. ``is_text``: it may be edited."""

    what: str
    fix: str = FOLDER
    is_text: bool = False


_IMAGE = "give the folder that holds the folders of the classes"
_BEGINS = {
    b"PAR1": FileKind("a parquet file", "give its name the suffix .parquet"),
    b"\x89PNG\r\n\x1a\n": FileKind("one image (PNG)", _IMAGE),
    b"\xff\xd8\xff": FileKind("one image (JPEG)", _IMAGE),
    b"GIF8": FileKind("one image (GIF)", _IMAGE),
    b"II*\0": FileKind("one image (TIFF)", _IMAGE),
    b"MM\0*": FileKind("one image (TIFF)", _IMAGE),
    b"RIFF": FileKind("a RIFF file (WebP, AVI or WAV)", _IMAGE),
    b"BM": FileKind("one image (BMP)", _IMAGE),
    b"\x93NUMPY": FileKind("a NumPy array (.npy)", TO_FILES),
    b"\x1f\x8b": FileKind("a packed file (gzip)", UNPACK),
    b"BZh": FileKind("a packed file (bzip2)", UNPACK),
    b"\xfd7zXZ\0": FileKind("a packed file (xz)", UNPACK),
    b"\x28\xb5\x2f\xfd": FileKind("a packed file (zstd)", UNPACK),
    b"7z\xbc\xaf\x27\x1c": FileKind("a 7-Zip archive", UNPACK),
    b"Rar!\x1a\x07": FileKind("a RAR archive", UNPACK),
    b"\x89HDF\r\n\x1a\n": FileKind("an HDF5 file (.h5)", TO_FILES),
    b"MATLAB 5.0": FileKind("a MATLAB file (.mat)", f"{TO_FILES}; of Flowers-102, give the folder that it lies in"),
    b"ARROW1": FileKind("an Arrow file", TO_PARQUET),
    b"\xff\xff\xff\xff": FileKind("an Arrow file (of save_to_disk)", "write it with the dataset's to_parquet"),
    b"SQLite format 3\0": FileKind("an SQLite database", TO_PARQUET),
    b"%PDF": FileKind("a PDF"),
    b"\x7fELF": FileKind("a program"),
    b"\0\0\x08\x01": FileKind("labels in the MNIST file format (IDX)", IN_ITS_FOLDER),
    b"\0\0\x08\x03": FileKind("images in the MNIST file format (IDX)", IN_ITS_FOLDER),
    **{
        bytes([0x80, version]): FileKind("a Python pickle", f"{TO_PARQUET}; CIFAR is torchvision:CIFAR10 or CIFAR100")
        for version in range(2, 6)
    },
}
_WITHIN = {  # offset -> what stands there
    4: (b"ftyp", FileKind("a film or a HEIC picture", SAVE_AS)),
    128: (b"DICM", FileKind("a DICOM picture", SAVE_AS)),
    257: (b"ustar", FileKind("a tar archive", UNPACK)),
}
_TEXTS = {
    "version https://git-lfs": FileKind("a pointer of Git LFS, not the file itself", "fetch it with git lfs pull"),
    "<!doctype html": FileKind("a web page (a download that failed?)", AGAIN),
    "<html": FileKind("a web page (a download that failed?)", AGAIN),
    "<svg": FileKind("a drawing (SVG)", SAVE_AS),
    "<?xml": FileKind("XML"),
}
_YAML = FileKind("a YAML text", "a config is the first argument: fastlg train CONFIG data.source=FOLDER", is_text=True)


def kind_of_file(path: Path) -> FileKind:
    """Never raises: what cannot be read is of no known kind."""
    try:
        with open(path, "rb") as file:
            head = file.read(LOOKED_AT)
        if not head:
            return FileKind("an empty file", is_text=True)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return _of_zip(path)
        if head.startswith(b"\x93NUMPY"):
            return FileKind(f"a NumPy array (.npy){_shape(head)}", TO_FILES)
    except (OSError, ValueError):
        return FileKind("")
    known = next((kind for begin, kind in _BEGINS.items() if head.startswith(begin)), None)
    known = known or next((kind for at, (mark, kind) in _WITHIN.items() if head[at:].startswith(mark)), None)
    return known or _of_text(path, head)


def refused_as(path: Path, than: str) -> str:
    """'PATH is a NumPy array (.npy), not THAN'; '' for a file of no known kind and for one that may be edited."""
    kind = kind_of_file(path)
    return f"{path} is {kind.what}, not {than}" if kind.what and not kind.is_text else ""


def _of_zip(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if names and all(name.endswith(".npy") for name in names):
                arrays = []
                for member in members[:FEW]:
                    with archive.open(member) as file:
                        arrays.append(f"{member.filename.removesuffix('.npy')}{_shape(file.read(LOOKED_AT))}")
                more = " ..." if len(members) > FEW else ""
                return FileKind(f"a NumPy archive (.npz) of {', '.join(arrays)}{more}", TO_FILES)
    except Exception as error:  # zipfile raises half a dozen types for a damaged archive
        return FileKind(f"a damaged {'NumPy' if path.suffix == '.npz' else 'zip'} archive ({error})", AGAIN)
    if any(name.endswith("/data.pkl") for name in names):
        return FileKind("a PyTorch file (weights?)", f"{FOLDER}; weights are given as teacher.weights")
    if "[Content_Types].xml" in names:
        return FileKind("an office document")
    return FileKind(f"a zip archive of {len(names):,} {'files' if len(names) != 1 else 'file'}", UNPACK)


def _shape(head: bytes) -> str:
    """' 4x8x8x3 uint8' of the header of an .npy file; '' where there is none."""
    try:
        start = 10 if head[6] == 1 else 12
        length = struct.unpack_from("<H" if head[6] == 1 else "<I", head, 8)[0]
        header = ast.literal_eval(head[start : start + length].decode("latin-1"))
        kind = {"|u1": "uint8", "<f4": "float32", "<f8": "float64", "<i8": "int64", "|O": "object"}
        return f" {'x'.join(map(str, header['shape'])) or 'of one value'} {kind.get(header['descr'], header['descr'])}"
    except Exception:  # a header that literal_eval cannot read raises anything; the line goes without it
        return ""


def _of_text(path: Path, head: bytes) -> FileKind:
    try:
        text = head.decode("utf-8-sig") if len(head) < LOOKED_AT else head[:-4].decode("utf-8-sig")
    except UnicodeDecodeError:
        return FileKind("")
    if re.search("[\0-\x08\x0e-\x1a\x1c-\x1f]", text):
        return FileKind("")
    start = text.lstrip().lower()
    known = next((kind for begin, kind in _TEXTS.items() if start.startswith(begin)), None)
    suffix = path.suffix.lower()
    if known or suffix in (".yaml", ".yml"):
        return known or _YAML
    if start.startswith(("[", "{")):
        return FileKind(
            "JSON", "of Chaoyang, give the folder that it lies in", is_text=suffix not in (".json", ".jsonl")
        )
    columns = _columns(start, suffix)
    if columns:
        named = ", ".join(column[:30] for column in columns[:FEW]) + (" ..." if len(columns) > FEW else "")
        fix = "sort the images that it names into one folder per class (train/CLASS/*.jpg), and give that folder"
        return FileKind(f"a table of text (CSV) with the columns {named}", fix)
    return FileKind("a text", is_text=True)


def _columns(text: str, suffix: str) -> list[str]:
    """The first line of a table of text; [] where it is none."""
    lines = text.splitlines()
    mark = "\t" if suffix == ".tsv" or "\t" in lines[0] else ","
    rows = [line.count(mark) for line in lines[:5] if line][: -1 if len(text) > LOOKED_AT - 100 else None]
    is_table = suffix in (".csv", ".tsv") or (len(rows) > 1 and rows[0] > 0 and len(set(rows)) == 1)
    return [column.strip(" \"'") for column in lines[0].split(mark)] if is_table else []
