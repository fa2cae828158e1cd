"""What figures depend on besides the peers: the machine, its disk, and who else works on it."""

import os
import platform
import statistics
import tempfile
import time

SYNCS = 100


def first_field(path, name):
    """The value of the first line `name…: value`, or nothing."""
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.startswith(name):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return None


def file_system(directory):
    """The type of what is mounted where `directory` is."""
    best = ("", "unknown")
    with open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            _, point, kind = line.split()[:3]
            inside = os.path.realpath(directory).startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def sync_ms():
    """Median time to append 4 KiB and make them durable, in milliseconds."""
    taken = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(SYNCS):
            start = time.perf_counter()
            os.write(file.fileno(), b"x" * 4096)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


def machine():
    """All of it, by name."""
    memory = (first_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": first_field("/proc/cpuinfo", "model name") or platform.machine(),
        "memoryGiB": round(int(memory) / (1 << 20), 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "fileSystem": file_system(tempfile.gettempdir()),
        "syncMs": round(sync_ms(), 2),
        "loadAverage": list(os.getloadavg()),
    }
