"""Server processes: started in sessions of their own, counted with all their children, ended by pid."""

import os
import signal
import socket
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 20
POLL_SECONDS = 0.05


class Failed(Exception):
    """A server did not do what it should; the text says which and why."""


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP as one KeyboardInterrupt: never between the start of a process and its being known, and
    never a second one, which would cut the cleaning up short."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self):
        self.held, self.came = False, False

    def install(self):
        for one in self.SIGNALS:
            signal.signal(one, self.handle)

    def handle(self, _number, _frame):
        if not self.came:
            self.came = True
            self.end()

    def end(self):
        if self.came and not self.held:
            raise KeyboardInterrupt

    def __enter__(self):
        self.held = True

    def __exit__(self, *_):
        self.held = False
        self.end()


INTERRUPTS = Interrupts()


def free_ports(count):
    """Ports of the loopback that nobody listens on. Another process could take one before it is used."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def stat(pid):
    """Parent, start, and processor time in ticks: own and that of children waited for. None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    # The name in parentheses may hold anything. Behind it: state, ppid, …, utime (12th), stime, cutime, cstime, …, start (20th).
    fields = text.rsplit(")", 1)[1].split()
    return int(fields[1]), int(fields[19]), sum(int(field) for field in fields[11:15])


def tree(roots):
    """The processes `roots` and all below them: (pid, start) to ticks. Both together never name another process."""
    seen = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            found = stat(int(name))
            if found:
                seen[int(name)] = found
    members = {pid for pid in roots if pid in seen}
    grown = True
    while grown:
        below = {pid for pid, (parent, _, _) in seen.items() if parent in members}
        grown = not below <= members
        members |= below
    return {(pid, seen[pid][1]): seen[pid][2] for pid in members}


class Servers:
    """The servers of one peer. Use it as a context: whatever happens, they are ended."""

    def __init__(self, directory):
        self.directory = directory
        self.started = []
        self.known = set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self, name, command, stop_with=signal.SIGTERM, **more):
        """Starts a server; what it says goes to NAME.log in the directory."""
        log = open(os.path.join(self.directory, f"{name}.log"), "ab")
        with log, INTERRUPTS:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **more
            )
            process.name, process.stop_with = name, stop_with
            self.started.append(process)

    def log(self, name):
        with open(os.path.join(self.directory, f"{name}.log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def wait(self, what, ready, seconds=60):
        """Waits until `ready()` answers something true, which it answers, too."""
        end = time.monotonic() + seconds
        why = None
        while time.monotonic() < end:
            for process in self.started:
                if process.poll() is not None:
                    raise Failed(f"{process.name} has ended: {self.log(process.name)[-2000:]}")
            try:
                found = ready()
                if found:
                    return found
            except (OSError, ValueError, KeyError, Failed) as error:
                why = error
            time.sleep(POLL_SECONDS)
        logs = "\n".join(f"{one.name}: {self.log(one.name)[-1000:]}" for one in self.started)
        raise Failed(f"{what}: not within {seconds} s ({why})\n{logs}")

    def cpu_seconds(self):
        """User and system time of all of them so far, children included."""
        members = tree([process.pid for process in self.started])
        self.known |= set(members)
        return sum(members.values()) / TICK

    def stop(self):
        """Asks each, the last started first, then kills what is left of them and of their children."""
        self.known |= set(tree([process.pid for process in self.started]))
        for process in reversed(self.started):
            if process.poll() is None:
                process.send_signal(process.stop_with)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    pass
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        # Children that outlived who started them.
        for pid, start in self.known:
            found = stat(pid)
            if found and found[1] == start:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.started, self.known = [], set()
