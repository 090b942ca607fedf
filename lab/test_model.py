"""Tests of the listener by the model, and what the model has found."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator

import pytest

from lab.model import explore
from lab.model_broker import BAD
from lab.model_surroundings import DEAD_LETTER, QUEUE, RETRY
from lab.model_world import World


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """The model logs for hours of its time, and sets the seed of `random` at each step."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    random.seed()


@pytest.mark.timeout(600)
def test_no_history_breaks_a_rule() -> None:
    report, _ = explore(seed=1, steps=100_000)

    assert not report, report


def plain_world(is_drain: bool = False, workers: int = 1) -> World:
    """A world of one pool; queues are made, and nothing has failed yet."""
    for seed in itertools.count():
        world = World(seed)
        k2hr3 = world.config.k2hr3
        is_plain = world.inbox == [QUEUE] and k2hr3.concurrency == workers and world.limit == 0
        if is_plain and world.is_drain == is_drain:
            break
    world.is_api_down = False
    world.is_repaired = True  # K2HR3 is fine
    world.turn()
    return world


def pass_time(world: World, seconds: float) -> None:
    """Let all threads run for so long."""
    end = world.clock.elapsed + seconds
    while world.clock.elapsed < end:
        world.turn()
        world.work()
        world.publish()
        world.check()


def test_a_retry_that_the_listener_took_is_not_missing() -> None:
    world = plain_world()
    world.send("port", is_retry=True)
    world.kill()
    pass_time(world, 1)

    # it looks again, as it did before it consumed; a wrong count is a violation
    world.broker.queues[RETRY].consumers[0].cancelled_by_broker()

    world.settle()


def test_deletions_are_attempted_though_copies_fail_after_an_overload() -> None:
    world = plain_world()
    world.broker.full.add(RETRY)
    for _ in range(3):
        world.send("port")
    world.turn()
    world.turn()
    world.clock.sleep(31)  # the workers were busy
    world.send("port")

    pass_time(world, 25)

    assert all(sent.is_made for sent in world.sent.values())


def test_a_drain_does_not_believe_a_queue_without_leader() -> None:
    world = plain_world(is_drain=True)
    world.send("port", is_retry=True)
    world.broker.leaderless.add(RETRY)

    pass_time(world, 5)  # to be done would be a violation

    assert not world.listener.is_done
    world.settle()


def test_a_doubt_is_told_though_the_deletion_was_made_again_meanwhile() -> None:
    world = plain_world(workers=3)
    world.send("port")
    world.turn()
    world.turn()
    late, other, _ = world.workers
    world._take(late)
    body = late.job.body
    world.lose_connection()
    for _ in range(20):  # it comes again, and is made
        world.clock.sleep(1)
        world.turn()
        world.publish()
    world._take(other)
    world._report(other)
    world.turn()
    assert world.sent[body].is_made
    assert not world.broker.unacked()

    world._report(late, BAD[2])
    pass_time(world, 10)

    assert [message.body for message in world.broker.queues[DEAD_LETTER].ready] == [body]
