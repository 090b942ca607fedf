"""Tests of the lab's broker."""

from __future__ import annotations

import subprocess
import sys

from lab.listener import PROGRAM


def test_processes_side_by_side_never_pick_the_same_port() -> None:
    picking = "from lab.broker import free_port; print(*(free_port() for _ in range(300)))"
    command = [sys.executable, "-c", f"{picking}; import sys; sys.stdout.flush(); input()"]
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROGRAM.parent
        )
        for _ in range(2)
    ]
    picked = []
    for process in processes:
        assert process.stdout
        picked += process.stdout.readline().split()
    for process in processes:
        process.communicate("\n")
    assert len(picked) == 600
    assert len(set(picked)) == len(picked)
