"""What tests, demo and benchmarks share: a private RabbitMQ, a stand-in Role API, faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], timeout: float = 10, what: str = "", interval: float = 0.05
) -> T:
    """Call `condition` every `interval` seconds until it is true, and return what it returned.

    An exception other than KeyboardInterrupt counts as "not yet": what is waited for may have to
    start first.

    Args:
        condition: gives the awaited value, or something false.
        timeout: seconds.
        what: what is awaited, for the error.
        interval: seconds between two calls.

    Raises:
        AssertionError: it never became true; names `what` and the last value or exception.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            value = condition()
            if value:
                return value
            last = value
        except Exception as error:
            last = error
        if time.monotonic() > deadline:
            what = what or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"waited {timeout} s for {what}; last: {last!r}")
        time.sleep(interval)
