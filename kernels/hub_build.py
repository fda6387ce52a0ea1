"""Writes fastlg_kernels as Kernel Hub variants: build/torch-cuda and build/torch-cpu, each with metadata.json.

    python kernels/hub_build.py [--out kernels/build]

The kernels are Python and Triton, so both variants hold the same sources. They differ in the identifier, which is the
namespace of their operators: it ends in a digest of the sources, so that builds and an installed package can live in
one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "torch-ext" / "fastlg_kernels"
OPS = '''"""The namespace of this copy's operators; written by hub_build.py."""

import torch

NAMESPACE = "{identifier}"
ops = torch.ops.{identifier}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{identifier}::{{op_name}}"
'''


def source_files() -> list[Path]:
    """What a variant holds: the package's sources, by name."""
    return sorted(SOURCES.rglob("*.py"))


def build(out: Path) -> list[Path]:
    """Write every backend's variant below ``out``, replacing what is there; returns their folders."""
    general = tomllib.loads((HERE / "build.toml").read_text(encoding="utf-8"))["general"]
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes())
    written = []
    for backend in general["backends"]:
        identifier = f"_{general['name'].replace('-', '_')}_{backend}_{digest.hexdigest()[:7]}"
        folder = out / f"torch-{backend}"
        shutil.rmtree(folder, ignore_errors=True)
        for path in source_files():
            target = folder / path.relative_to(SOURCES)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (folder / "_ops.py").write_text(OPS.format(identifier=identifier), encoding="utf-8")
        metadata = {
            "id": identifier,
            "name": general["name"],
            "version": general["version"],
            "license": general["license"],
            "python-depends": [],
            "backend": {"type": backend},
        }
        (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        written.append(folder)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "build")
    for folder in build(parser.parse_args().out):
        print(folder)


if __name__ == "__main__":
    main()
