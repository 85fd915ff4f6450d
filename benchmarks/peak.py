"""Peak memory of a process."""

from __future__ import annotations

import resource


def peak_mib() -> float:
    """Return the peak resident memory of this program, in MiB.

    On Linux it is that of the program alone; `getrusage` includes the process that started it.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return int(file.read().split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
