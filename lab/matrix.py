"""The tests that depend on versions, with every Python, pika and urllib3 that is supported.

`python -m lab.matrix` runs them on each Python from 3.9 to 3.13 of this machine, with the oldest
pika and urllib3 and with the newest, and on /usr/bin/python3 with Debian's own packages, of this
machine and of each release in `RELEASES` (which `make broker` builds), there with the release's
own RabbitMQ; `--quick` on the oldest, the newest and Debian's. It prints one table and exits 1 if
one failed.

The same file is the pytest plugin that chooses the tests: all that need no broker, and `SMOKE`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-matrix"
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
DEBIAN = "/usr/bin/python3"
DEBIANS = Path("/usr/lib/python3/dist-packages")
RELEASES = sorted(ROOT.glob(".brokers/*/run"))
TOOLS = (
    "cryptography",
    "hypothesis",
    "oslo.messaging",
    "psutil",
    "pytest",
    "pytest-timeout",
    "trustme",
)

#: The oldest versions that work, which are the oldest that the module declares: pika 1.2.0 and
#: urllib3 1.26.5 were tried on each of `PYTHONS`.
OLDEST = ("pika==1.2.0", "urllib3==1.26.5")
NEWEST = ("pika", "urllib3")

#: All three deletions, a retry, a dead letter, headers that pika can't read, TLS to both sides, the
#: end.
SMOKE = (
    "test_every_deletion_from_every_driver_is_made",
    "test_an_attempt_that_fails_moves_the_deletion_to_the_retry_queue",
    "test_a_malformed_notification_becomes_a_dead_letter_with_a_reason",
    "test_one_odd_message_stops_no_other",
    "test_deletions_arrive_over_tls",
    "test_tls_to_the_role_api",
    "test_stops_in_the_middle_of_a_load",
)
#: Of a test with many parameters, so many are enough.
OF_EACH = 3
#: Of a property, so many random examples; `make test` has more.
EXAMPLES = 50
#: Rows of the table; much of a row is waiting.
AT_ONCE = 2
#: Fixtures of tests that are not about the module itself, or try other versions anyway.
NOT_ABOUT_VERSIONS = {"installed", "contrib"}


class Row(NamedTuple):
    """A line of the table."""

    python: str
    pika: str
    urllib3: str
    result: str
    seconds: str


# The choice of tests


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what needs no broker, and some of each test of `SMOKE`."""
    kept: list[pytest.Item] = []
    for item in items:
        name = item.name.partition("[")[0]
        fixtures = set(getattr(item, "fixturenames", ()))
        if name in SMOKE:
            chosen = sum(each.name.partition("[")[0] == name for each in kept) < OF_EACH
        else:
            chosen = not fixtures & NOT_ABOUT_VERSIONS and not needs_broker(item)
        if chosen:
            kept.append(item)
            shorten(item)
    missing = set(SMOKE) - {item.name.partition("[")[0] for item in kept}
    assert not missing, f"SMOKE names tests that are not there: {missing}"
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def shorten(item: pytest.Item) -> None:
    """Have a property tested with `EXAMPLES` at most; a profile loses against its own settings."""
    from hypothesis import settings

    function, name = getattr(item, "obj", None), "_hypothesis_internal_use_settings"
    given = getattr(function, name, None)
    if given is not None and given.max_examples > EXAMPLES:
        setattr(function, name, settings(given, max_examples=EXAMPLES))


def needs_broker(item: pytest.Item) -> bool:
    """Whether a test uses a fixture of a broker, or starts one itself."""
    code = getattr(getattr(item, "function", None), "__code__", None)
    return "Broker" in getattr(code, "co_names", ()) or any(
        "broker" in name or name == "fragile" for name in getattr(item, "fixturenames", ())
    )


# The environments


def index_environment() -> dict[str, str]:
    """This process's environment, with pip's settings of package indexes for uv, too."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], value.strip("'"))  # the first one wins
    variables = {
        "UV_DEFAULT_INDEX": settings.get("index-url"),
        "UV_INDEX": settings.get("extra-index-url"),
        "UV_FIND_LINKS": settings.get("find-links", "").replace(" ", ","),
    }
    return {
        **os.environ,
        **{name: value for name, value in variables.items() if value},
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def interpreters() -> dict[str, str]:
    """The Python of each supported version on this machine: pyenv's newest, or one on PATH."""
    found = {}
    for version in PYTHONS:
        pyenv = sorted(
            Path.home().glob(f".pyenv/versions/{version}.*/bin/python"),
            key=lambda path: int(path.parts[-3].rpartition(".")[2]),
        )
        python = str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")
        if python and not subprocess.run([python, "-c", ""], stderr=subprocess.DEVNULL).returncode:
            found[version] = python
    return found


def run(python: str, packages: Iterable[str], release: Path | None = None) -> Row:
    """Make an environment of a Python and packages (none: Debian's own) and test in it.

    Args:
        release: runs commands within another Debian release.
    """
    began = time.monotonic()
    own = not packages
    variables = index_environment()
    within = [str(release)] if release else []
    uv = [*within, str(Path(sys.executable).parent / "uv")]
    system = release.parent.name if release else ""
    folder = FOLDER / "-".join([system, *python.split("/"), *packages]).strip("-")
    inside = str(folder / "bin" / "python")
    execute([*uv, "venv", "-q", "--clear", "--python", python, str(folder)], variables)
    execute([*uv, "pip", "install", "-q", "--python", inside, *TOOLS, *packages], variables)
    if own:  # nothing else of Debian's, which does not fit the tools
        execute([*uv, "pip", "uninstall", "-q", "--python", inside, "urllib3"], variables)
        (site,) = folder.glob("lib/python3.*/site-packages")
        for name in ("pika", "urllib3"):
            (site / name).symlink_to(DEBIANS / name)
    versions = json.loads(
        execute(
            [
                *within,
                inside,
                "-c",
                "import json, pika, platform, urllib3; print(json.dumps([platform."
                "python_version(), pika.__version__, urllib3.__version__]))",
            ],
            variables,
        )
    )
    tests = subprocess.run(
        [
            *within,
            inside,
            "-m",
            "pytest",
            "-p",
            "lab.matrix",
            "-p",
            "no:cacheprovider",
            "--durations=0",
            *map(str, sorted(ROOT.glob("test_*.py"))),
        ],
        cwd=ROOT,
        env={**variables, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if tests.returncode:
        print(tests.stdout)
    print(f"done: {system} {python} {' '.join(packages) or DEBIANS}", flush=True)
    summary = (tests.stdout.strip().splitlines() or ["no output"])[-1].partition(" in ")[0]
    result = "ok" if tests.returncode == 0 else "FAILED"
    whose = f", {system or 'Debian'}'s" if own else ""
    return Row(
        versions[0] + whose,
        versions[1],
        versions[2],
        f"{result}: {summary.strip('= ')}",
        f"{time.monotonic() - began:.0f}",
    )


def execute(command: list[str], environment: Mapping[str, str]) -> str:
    """Run a command and return its output; on failure show that and end."""
    done = subprocess.run(
        command, env=dict(environment), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def main() -> int:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(prog="lab.matrix", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the oldest, the newest, Debian's")
    quick = parser.parse_args().quick
    found = interpreters()
    chosen: list[tuple[str, tuple[str, ...], Path | None]] = [
        (python, packages, None) for python in found.values() for packages in (OLDEST, NEWEST)
    ]
    if quick:
        chosen = [chosen[0], chosen[-1]]
    if Path(DEBIAN).exists():
        chosen.append((DEBIAN, (), None))
    chosen += [(DEBIAN, (), release) for release in RELEASES]
    print("not on this machine: " + (", ".join(set(PYTHONS) - set(found)) or "nothing"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rows = [Row(*Row._fields), *pool.map(lambda each: run(*each), chosen)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    print()
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    return int(not all(row.result.startswith("ok") for row in rows[1:]))


if __name__ == "__main__":
    sys.exit(main())
