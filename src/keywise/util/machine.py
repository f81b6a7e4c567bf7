"""The CPU's name, and the CPUs that this process may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPU_LIST = Path("/proc/cpuinfo")


def list_available_cpus() -> list[int]:
    """Return the numbers of the CPUs that this process may run on.

    Returns
    -------
    list of int
        In ascending order.

    Examples
    --------
    >>> len(list_available_cpus()) > 0
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def read_cpu_name() -> str:
    """Return the name of the CPU.

    Returns
    -------
    str
        With family and model where they are known, because virtual machines often report the brand alone.

    Examples
    --------
    >>> len(read_cpu_name()) > 0
    True
    """
    # platform.processor() is empty or just the architecture on most Linux systems.
    if CPU_LIST.is_file():
        first_cpu = CPU_LIST.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        lines = (line.partition(":") for line in first_cpu.splitlines())
        fields = {name.strip(): value.strip() for name, _, value in lines}
        name = fields.get("model name")
        if name and "cpu family" in fields:
            return f"{name} (family {fields['cpu family']}, model {fields['model']})"
        if name:
            return name
    return platform.processor() or platform.machine()
