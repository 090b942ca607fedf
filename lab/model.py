"""A model: the real listener among all that can happen, in random order, checked at each step.

    python -m lab.model --steps 1000000 --seed 7        many histories
    python -m lab.model --history 7001234               one of them again, and its shortest form

A history is a list of steps, drawn from a seed. lab.model_world plays it with the real `Listener`
(or `Drain`), `Attempts` and `Publisher` of the module, beside a broker, a Role API and a clock in
memory. At its end everything is repaired, and all that was published must come to its end in time.

The scheduler is our own and not hypothesis' state machine: a history is a plain list, so it is
replayed by its seed and shortened by leaving out steps, and a step costs 0.2 ms.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time

from lab.model_broker import Violation
from lab.model_world import STEPS, Step, World


def make_history(seed: int) -> list[Step]:
    """Draw a history of 20 to 200 steps."""
    draw = random.Random(seed)
    # each leaves out some faults, so that the others are met in a calm world, too
    names = [name for name, (weight, _, _) in STEPS.items() if weight > 2 or draw.random() < 0.4]
    weights = [STEPS[name][0] for name in names]
    steps = []
    for name in draw.choices(names, weights, k=draw.randrange(20, 200)):
        after = draw.randrange(1, 8) if draw.random() < 0.15 else 0
        steps.append(Step(name, draw.randrange(10_000), after))
    return steps


def play(seed: int, steps: list[Step]) -> tuple[str, int]:
    """Play a history; return the rule that it breaks, or an empty text, and the steps taken."""
    world = World(seed)
    taken = 0
    try:
        for step in steps:
            taken += 1
            world.run(step)
            world.check()
        world.settle()
    except Violation as violation:
        return str(violation), taken
    except Exception as error:
        where = error.__traceback__
        while where and where.tb_next:
            where = where.tb_next
        line = where.tb_lineno if where else 0
        return f"unexpected {error!r} in line {line}", taken
    return "", taken


def shorten(seed: int, steps: list[Step], rule: str) -> list[Step]:
    """Leave out steps as long as the same rule is broken."""

    def kind(text: str) -> str:
        return "".join(letter for letter in text if not letter.isdigit())

    size = max(1, len(steps) // 2)
    while size:
        start = 0
        has_changed = False
        while start < len(steps):
            fewer = steps[:start] + steps[start + size :]
            if kind(play(seed, fewer)[0]) == kind(rule):
                steps = fewer
                has_changed = True
            else:
                start += size
        if not has_changed or size > 1:
            size //= 2
    return steps


def explore(seed: int, steps: int, is_shortened: bool = True) -> tuple[str, int]:
    """Play histories until so many steps are taken.

    :param is_shortened: report the shortest form of a history
    :return: a report of the first history that breaks a rule, or an empty text, and the steps taken
    """
    total = 0
    number = 0
    while total < steps:
        history_seed = seed * 1_000_000 + number
        rule, taken = play(history_seed, make_history(history_seed))
        total += taken
        number += 1
        if rule:
            found = make_history(history_seed)[:taken]
            if is_shortened:
                found = shorten(history_seed, found, rule)
            return report(history_seed, found, rule), total
    return "", total


def report(seed: int, steps: list[Step], rule: str) -> str:
    """Describe a history."""
    lines = [f"broken: {rule}", f"again: python -m lab.model --history {seed}"]
    for step in steps:
        after = f" (in call {step.after} to the broker)" if step.after else ""
        lines.append(f"  {step.name} {step.number}{after}")
    return "\n".join([*lines, "  then all is repaired, and time passes"])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.model", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--history", type=int, help="the seed of one history")
    parser.add_argument("--as-found", action="store_true", help="do not shorten a failing history")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    if arguments.history is not None:
        steps = make_history(arguments.history)
        rule, taken = play(arguments.history, steps)
        text = ""
        if rule:
            steps = shorten(arguments.history, steps[:taken], rule)
            text = report(arguments.history, steps, rule)
    else:
        text, taken = explore(arguments.seed, arguments.steps, not arguments.as_found)
    seconds = time.monotonic() - began
    print(text or "no rule is broken")
    seed = arguments.seed if arguments.history is None else arguments.history
    print(f"{taken} steps from seed {seed} in {seconds:.1f} s")
    return int(bool(text))


if __name__ == "__main__":
    sys.exit(main())
