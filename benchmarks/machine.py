"""What gave a figure: processor, instruction set, and the libraries that multiply matrices."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")


def about(device: torch.device) -> dict[str, str | int]:
    """Of the device, in words; of a CPU which instructions torch and oneDNN may use, and whose products torch takes."""
    out: dict[str, str | int] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), **out, "cuda": str(torch.version.cuda)}
    built = torch.__config__.show()
    onednn = re.search(r"MKL-DNN (v[\d.]+)", built)
    # What limits each library is told: torch's own kernels, oneDNN's and MKL's choose their instructions separately.
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return {
        "device": f"{_processor()}, {platform.machine()}",
        **out,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "limited by": " ".join(limits) or "nothing",
        "floor's products": "MKL" if torch.backends.mkl.is_available() else "torch's BLAS",
        "our products": f"oneDNN {onednn[1]}" if onednn and torch.backends.mkldnn.is_available() else "torch's BLAS",
    }


LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def _processor() -> str:
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"
