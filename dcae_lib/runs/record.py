"""Where a number comes from: the code, the versions and the machine, in words."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..files import CLONE, PACKAGE


def provenance(device: torch.device) -> dict:
    """The code's revision, versions of what computes, and the hardware, for the record of a run."""
    return dict(
        revision=revision(),
        versions=dict(
            python=platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "torchmetrics", "numpy", "safetensors")},
        ),
        hardware=hardware(device),
        threads=torch.get_num_threads(),
    )


def revision() -> str:
    """The commit of a clone, "+ changes" where dcae_lib/ has any that are not committed; else the package's version."""
    try:
        if CLONE:
            commit = _git("rev-parse", "HEAD")
            return f"{commit} + changes" if _git("status", "--porcelain", "--", PACKAGE.name) else commit
        return f"dcae_lib {version('dcae_lib')}"
    except (OSError, subprocess.CalledProcessError, PackageNotFoundError):
        return "unknown"


def hardware(device: torch.device) -> str:
    """The name of the device that computes, such as a processor's, and the operating system."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{name}, {platform.system()}"


def processor() -> str:
    """The processor's name in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(CLONE), *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()
