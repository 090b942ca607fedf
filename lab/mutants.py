"""Plants each mutant of lab/mutants in the module, and shows that the model finds it.

    python -m lab.mutants [NAME…]

A mutant is a patch of one line of the module; the first line of its file says what goes wrong. One
that can't be found says so in a line that begins with "Not found:", with the reason. The exit code
is 1 if another one is not found, or if a patch no longer fits the module.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULE = "k2hr3_osnl.py"
STEPS = 100_000


def plant(patch: Path, folder: Path) -> None:
    """Make a folder of the mutated module and the lab.

    :raises subprocess.CalledProcessError: the patch does not fit
    """
    shutil.copy(ROOT / MODULE, folder)
    (folder / "lab").symlink_to(ROOT / "lab")
    command = ["patch", "--fuzz=3", "--silent", "--input", str(patch), MODULE]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def hunt(folder: Path, seed: int) -> tuple[str, str]:
    """Run the model there; return the broken rule, or an empty text, and the steps taken."""
    command = [sys.executable, "-m", "lab.model", "--as-found"]
    command += ["--steps", str(STEPS), "--seed", str(seed)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    rule = re.search(r"^broken: (.*)", run.stdout, re.M)
    steps = re.search(r"^(\d+) steps", run.stdout, re.M)
    if steps is None:
        raise RuntimeError(run.stderr)
    return rule[1] if rule else "", steps[1]


def main(names: list[str]) -> int:
    """Show a table of all mutants, or of those named."""
    patches = sorted((ROOT / "lab" / "mutants").glob("*.patch"))
    problems = 0
    print(f"{'mutant':24}{'steps':>8}  broken rule")
    for patch in patches:
        if names and patch.stem not in names:
            continue
        reason = re.search(r"^Not found: (.*)", patch.read_text(), re.M)
        with tempfile.TemporaryDirectory() as folder:
            try:
                plant(patch, Path(folder))
            except subprocess.CalledProcessError:
                problems += 1
                print(f"{patch.stem:24}{'-':>8}  THE PATCH DOES NOT FIT THE MODULE")
                continue
            rule, steps = hunt(Path(folder), seed=1)
        if not rule and reason:
            rule = f"none: {reason[1]}"
        elif not rule:
            problems += 1
        print(f"{patch.stem:24}{steps:>8}  {rule or 'NOT FOUND'}", flush=True)
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
