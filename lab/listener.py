"""The program as a user runs it: a process of its own, with a settings file."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from lab import wait_until

PROGRAM = Path(__file__).resolve().parent.parent / "k2hr3_osnl.py"
Sections = Mapping[str, Mapping[str, object]]


def write_settings(path: Path, sections: Sections) -> Path:
    """Write a settings file that only its owner can read; returns `path`."""
    lines = []
    for section, options in sections.items():
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in options.items()), ""]
    path.touch(mode=0o600)
    path.write_text("\n".join(lines))
    return path


def settings(transport_url: str, api_url: str, **k2hr3: object) -> dict[str, dict[str, object]]:
    """The sections of the usual set-up: Neutron's deletions, a short time-out; for changing."""
    return {
        "DEFAULT": {"debug_level": "debug"},
        "oslo_messaging_notifications": {"transport_url": transport_url},
        "oslo_messaging_rabbit": {},
        "k2hr3": {"api_url": api_url, "timeout_seconds": 2, "retry_interval_seconds": 5, **k2hr3},
    }


class ListenerProcess:
    """`k2hr3_osnl.py -c FILE` in a process of its own; ended with its context manager.

    Args:
        sections: what the settings file says.
        arguments: further ones of the command line.
        environment: variables added to this process's.
        python: the interpreter.
        program: the file.
        driver: Python code run instead of the file, for tests that must break in at one point;
            it finds the program as module `k2hr3_osnl`.
    """

    def __init__(
        self,
        sections: Sections,
        *arguments: str,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        program: Path = PROGRAM,
        driver: str = "",
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="k2hr3_osnl.")
        folder = Path(self._folder.name)
        self.settings = write_settings(folder / "k2hr3_osnl.ini", sections)
        self.log_path = folder / "stderr"
        run = ["-c", driver] if driver else [str(program)]
        self._command = [python, *run, "-c", str(self.settings), *arguments]
        self._environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent), **(environment or {})}
        self.process: subprocess.Popen[bytes]

    def start(self) -> ListenerProcess:
        """Start it (again); its log goes on in the same file."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._folder.name,
            )
        return self

    def stop(self, timeout: float = 15) -> int:
        """Send SIGTERM and return the exit code; `timeout` in seconds."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """All it wrote to stderr and stdout."""
        return self.log_path.read_text(errors="replace")

    def wait_for_log(self, pattern: str, timeout: float = 15, count: int = 1) -> list[str]:
        """Wait until the log has `count` matches of a regular expression; returns all."""

        def found() -> list[str]:
            matches = [match[0] for match in re.finditer(pattern, self.log)]
            return matches if len(matches) >= count else []

        try:
            return wait_until(found, timeout, f"{count} × {pattern!r} in the log")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-3000:]}") from None

    def rss(self) -> int:
        """Resident size, bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def __enter__(self) -> ListenerProcess:
        return self.start()

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self._folder.cleanup()


class NotifySocket:
    """What systemd listens on; `address` is the value of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.messages: list[str] = []
        self.environment = {"NOTIFY_SOCKET": address}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self._socket.settimeout(0.05)

    def wait_for(self, pattern: str, count: int = 1) -> str:
        """Wait for `count` further messages that contain a match; returns the last one."""

        def found() -> str:
            nonlocal count
            message = self._socket.recv(4096).decode()
            self.messages.append(message)
            count -= re.search(pattern, message, re.M) is not None
            return message if count <= 0 else ""

        return wait_until(found, 20, f"{count} × {pattern} on NOTIFY_SOCKET")

    def close(self) -> None:
        self._socket.close()
