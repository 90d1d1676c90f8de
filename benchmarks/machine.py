"""What figures were taken on."""

import os
import platform
from pathlib import Path


def machine(**more: object) -> dict[str, object]:
    """The processor, and how busy it was; `more` is what else the figures depend on, by name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        **more,
        "load_1min": round(os.getloadavg()[0], 2),
    }
