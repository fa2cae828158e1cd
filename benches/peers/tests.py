#!/usr/bin/env python3
"""Tests of the parts that no run would show to be wrong: sums, ratios, processor time of children, and that nothing is left running."""

import os
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree

sys.dont_write_bytecode = True

import picture  # noqa: E402
import table  # noqa: E402
from processes import Failed, Servers, stat  # noqa: E402

LIMIT_SECONDS = 60


def sample(peer, load, per_second):
    return {"peer": peer, "load": load, "perSecond": per_second, "p50Ms": 1.0, "p99Ms": 1000 / per_second, "cpuUs": 10.0,
            "generatorCpuUs": 5.0, "load1": 1.0}


def told(samples, peers):
    machine = {"cores": 2, "processor": "p", "memoryGiB": 1, "kernel": "k", "fileSystem": "f", "syncMs": 1, "loadAverage": [0.5]}
    options = {"connections": 64, "keys": 10, "value_bytes": 300, "rounds": 3, "seconds": 1.0, "batch": 20}
    return {"machine": machine, "options": options, "peers": {peer: "1" for peer in peers}, "samples": samples, "skipped": {"x": ["y"]},
            "failures": [], "rows": table.summary(samples, peers, ["get", "batchGet"])}


class Tables(unittest.TestCase):
    SAMPLES = [sample("b", "get", 50), *(sample("a", "get", value) for value in (100, 900, 200)), sample("b", "batchGet", 7)]

    def test_medians_and_ratios_refer_to_the_first_peer_that_has_the_load(self):
        rows = table.summary(self.SAMPLES, ["a", "b"], ["get", "batchGet"])
        self.assertEqual([(row["load"], row["peer"], row["rounds"]) for row in rows], [("get", "a", 3), ("get", "b", 1), ("batchGet", "b", 1)])
        self.assertEqual(rows[0]["perSecond"], {"median": 200, "min": 100, "max": 900})
        self.assertEqual([row["ratio"]["perSecond"] for row in rows], [1, 0.25, 1])

    def test_the_table_has_a_line_for_each_row_and_for_what_is_missing(self):
        text = table.markdown(told(self.SAMPLES, ["a", "b"]))
        lines = [line for line in text.splitlines() if line.startswith("|")]
        self.assertEqual(len({line.count("|") for line in lines}), 1, text)
        self.assertEqual(len(lines), 2 + 3 + 1)
        self.assertIn("| get | b | 50 (50–50) | 0.25 |", text)
        self.assertIn("skipped: y is missing", text)

    def test_the_picture_has_two_bars_for_each_row(self):
        root = xml.etree.ElementTree.fromstring(picture.draw(told(self.SAMPLES, ["a", "b"])))
        titles = [one.text for one in root.iter("{http://www.w3.org/2000/svg}title")]
        self.assertEqual(len(titles), 2 * 3)
        self.assertIn("a: 200 (100–900)", titles)


def until(check):
    end = time.monotonic() + LIMIT_SECONDS
    while not check():
        if time.monotonic() > end:
            raise AssertionError("not in time")


def runs(one):
    """Whether it is more than an entry that nobody has waited for."""
    found = stat(one[0])
    if not found or found[1] != one[1]:
        return False
    with open(f"/proc/{one[0]}/stat", encoding="utf-8") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


class Processes(unittest.TestCase):
    def test_children_are_counted_and_nothing_is_left(self):
        with tempfile.TemporaryDirectory() as directory, Servers(directory) as servers:
            # The shell's end does not end its child; what the first child has used is in the shell's figures.
            servers.start("shell", ["sh", "-c", "i=0; (while [ $i -lt 100000 ]; do i=$((i+1)); done); sleep 1000 & wait"])
            until(lambda: servers.cpu_seconds() > 0.05 and len(servers.known) > 1 and sleeping(servers))
            known = set(servers.known)
            servers.stop()
            until(lambda: not any(runs(one) for one in known if stat(one[0])))

    def test_a_server_that_ends_is_told_with_what_it_said(self):
        with tempfile.TemporaryDirectory() as directory, Servers(directory) as servers:
            servers.start("loser", ["sh", "-c", "echo no such disk >&2; exit 3"])
            with self.assertRaisesRegex(Failed, "loser has ended: no such disk"):
                servers.wait("never", lambda: False)


def sleeping(servers):
    """Whether the shell has come to its second child."""
    names = []
    for pid, _ in servers.known:
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                names.append(file.read().strip())
        except OSError:
            pass
    return "sleep" in names


if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    unittest.main()
