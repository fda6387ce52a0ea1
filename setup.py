"""Two packages from two places: fastlg, and fastlg_kernels which lives in the Kernel Hub layout under kernels/."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
KERNELS = "kernels/torch-ext"


class BuildWithConfigs(build_py):
    """Puts configs/ inside the built fastlg package, so that an installed wheel finds them by name."""

    def run(self):
        super().run()
        if self.editable_mode:  # an editable install reads configs/ beside the sources
            return
        for source in sorted((ROOT / "configs").rglob("*.yaml")):
            target = Path(self.build_lib) / "fastlg" / "configs" / source.relative_to(ROOT / "configs")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def read_version():
    for line in (ROOT / "fastlg" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("fastlg/__init__.py holds no __version__")


setup(
    version=read_version(),
    packages=find_packages(include=["fastlg", "fastlg.*"]) + find_packages(KERNELS),
    package_dir={"fastlg_kernels": f"{KERNELS}/fastlg_kernels"},
    cmdclass={"build_py": BuildWithConfigs},
)
