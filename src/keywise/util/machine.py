"""The machine that this process runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def get_cpu_ids() -> list[int]:
    """Return the numbers of the CPUs that this process may use.

    Examples
    --------
    >>> from keywise.util.machine import get_cpu_ids
    >>> len(get_cpu_ids()) > 0
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def get_cpu_name() -> str:
    """Return the name of the CPU, with family and model where Linux reports them.

    Examples
    --------
    >>> from keywise.util.machine import get_cpu_name
    >>> len(get_cpu_name()) > 0
    True
    """
    # platform.processor() is empty or just the architecture on most Linux systems.
    cpu_info = Path("/proc/cpuinfo")
    if not cpu_info.is_file():
        return platform.processor() or platform.machine()
    first_cpu = cpu_info.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    fields = (line.partition(":") for line in first_cpu.splitlines())
    values = {name.strip(): value.strip() for name, _, value in fields}
    name = values.get("model name") or platform.processor() or platform.machine()
    # Virtual machines often report the brand alone.
    return f"{name} (family {values['cpu family']}, model {values['model']})" if "cpu family" in values else name
