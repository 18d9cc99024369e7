"""The largest resident memory of this process so far."""

import resource


def peak() -> float:
    """MB. From ``VmHWM`` where there is one: ``ru_maxrss`` of a child begins at its parent's."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
