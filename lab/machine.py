"""Debian machines to install the program on: booted with systemd, or as a container.

They stand on `.base`, which lab/base.sh builds, and change nothing there. They use this machine's
network, so that a broker on 127.0.0.1 is reachable. All else is in memory and in namespaces, and
goes when we are gone, killed or not.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lab import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / ".base"
SUDO = [] if os.geteuid() == 0 else ["sudo"]
#: It says its process id as this machine knows it, and ends when our end of its standard input is
#: closed. As the first process of its namespace it takes all the others with it.
HOLD = "read pid rest </proc/self/stat; mount -t proc proc /proc; echo $pid; read rest"
Done = subprocess.CompletedProcess[str]


def run(command: list[str], check: bool, text: str | None = None) -> Done:
    """Run a command to its end; its output, errors included, is in `stdout`.

    Args:
        command: the program and its arguments.
        check: whether an exit code other than 0 is an error.
        text: its standard input.

    Raises:
        AssertionError: it failed; with its output.
    """
    done = subprocess.run(
        command,
        input=text or "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0 or not check, f"{command[-1]}: {done.returncode}: {done.stdout}"
    return done


class Box:
    """Namespaces for mounts and processes: what is mounted or started in it ends with it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            [*SUDO, "unshare", "--mount", "--pid", "--fork", "/bin/sh", "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=not SUDO,  # Ctrl-C is for us; sudo asks for its password
        )
        assert self._holder.stdout
        self._pid = int(self._holder.stdout.readline())

    def inside(self, *command: str) -> list[str]:
        """The command that runs this one in the box."""
        return [*SUDO, "nsenter", f"--target={self._pid}", "--mount", "--pid", "--", *command]

    def close(self) -> None:
        self._holder.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Machine:
    """A Debian with systemd, booted by systemd-nspawn; the project is at /src, read-only."""

    def __init__(self, box: Box) -> None:
        self._nspawn = subprocess.Popen(
            box.inside(
                "systemd-nspawn",
                "--quiet",
                "--register=no",
                "--keep-unit",
                "--console=pipe",
                "--volatile=overlay",
                f"--directory={BASE}/root",
                f"--bind-ro={ROOT}:/src",
                "--boot",
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._pid = wait_until(self._first_process, 30, "systemd to be started")
        wait_until(self._has_booted, 60, "systemd to have booted")

    def _first_process(self) -> int:
        """Process id of the machine's systemd, or 0."""
        for process in psutil.Process(self._nspawn.pid).children(recursive=True):
            if process.name() == "systemd":
                return process.pid
        return 0

    def _has_booted(self) -> bool:
        state = self.run("systemctl is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def run(self, script: str, check: bool = True, text: str | None = None) -> Done:
        """Run lines of a shell as root, in the folder of the project, until one fails.

        Args:
            script: the lines.
            check: whether a failure is an error.
            text: standard input.
        """
        enter = [*SUDO, "nsenter", f"--target={self._pid}", "--all", "--root"]
        clean = ["/usr/bin/env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"]
        return run([*enter, "--", *clean, "/bin/bash", "-euc", f"cd /src; {script}"], check, text)

    def write(self, path: str, text: str) -> None:
        """Write a file; one that is there keeps its owner and mode."""
        self.run(f"cat >'{path}'", text=text)


class Podman:
    """podman with a store of its own, in which `.base` is the image debian:12-slim."""

    STORE = f"{BASE}/store"

    def __init__(self, box: Box) -> None:
        self._box = box
        run(box.inside("mount", "-t", "tmpfs", "none", self.STORE), check=True)
        self("import", "--quiet", f"{BASE}/debian.tar", "docker.io/library/debian:12-slim")

    def command(self, *arguments: str) -> list[str]:
        """The command line of podman with these arguments."""
        # runc: Debian's crun refuses mixed cgroups of version 1 and 2
        return self._box.inside(
            "podman",
            f"--root={self.STORE}/root",
            f"--runroot={self.STORE}/run",
            "--runtime=runc",
            "--cgroup-manager=cgroupfs",
            "--events-backend=none",
            *arguments,
        )

    def __call__(self, *arguments: str, check: bool = True) -> Done:
        return run(self.command(*arguments), check)
