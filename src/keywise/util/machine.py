"""The CPU's name, and the CPUs and the memory that this process may use."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

CPU_LIST = Path("/proc/cpuinfo")
MEMORY_LIST = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


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


def measure_available_memory() -> int:
    """Return the number of bytes that this process can probably still allocate.

    Returns
    -------
    int
        The least of the machine's available memory and the limits of the control group and of the address space.

    Examples
    --------
    >>> measure_available_memory() > 0
    True
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if MEMORY_LIST.is_file():
        lines = (line.partition(":") for line in MEMORY_LIST.read_text(encoding="ascii").splitlines())
        fields = {name: value.split() for name, _, value in lines}
        if "MemAvailable" in fields:
            limits.append(1024 * int(fields["MemAvailable"][0]))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # versions 2 and 1
        if (CGROUP / name).is_file() and (text := (CGROUP / name).read_text(encoding="ascii").strip()).isdigit():
            limits.append(int(text))
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    return min(limits)
