"""fastlg_kernels alone, for those who do not want the rest of fastlg; it has fastlg's version."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """The version in fastlg/__init__.py, beside this folder; in a source distribution, the one it was made with."""
    for path, key in ((HERE.parent / "fastlg" / "__init__.py", "__version__ ="), (HERE / "PKG-INFO", "Version:")):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            if line.startswith(key):
                return line.removeprefix(key).strip(' "')
    raise RuntimeError(f"no version: {HERE} is neither in a clone of fastlg nor a source distribution; build it there")


# kernels/build holds the Kernel Hub's variants (hub_build.py)
setup(version=read_version(), options={"build": {"build_base": "build/wheel"}})
