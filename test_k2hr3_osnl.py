"""Tests of k2hr3_osnl.py, as a page of what it does; the broker and the publishers are real."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

import k2hr3_osnl
from k2hr3_osnl import Config, ConfigError, Deletion, Endpoint, MalformedNotification
from lab import wait_until
from lab.broker import Broker
from lab.listener import ListenerProcess, settings, write_settings
from lab.notifier import Notifier, compute_instance, instance, noise, port
from lab.role_api import RoleApi, Status

# --- Real parts --------------------------------------------------------------------------------

QUEUES = ("k2hr3_osnl", "k2hr3_osnl.retry", "k2hr3_osnl.dead_letter")


@pytest.fixture(scope="session")
def the_broker() -> Iterator[Broker]:
    """One RabbitMQ for the tests that leave it running."""
    with Broker() as broker:
        yield broker


@pytest.fixture
def broker(the_broker: Broker) -> Broker:
    """The RabbitMQ, without queues and exchanges of an earlier test."""
    the_broker.start()
    for name in the_broker.queues():
        the_broker.delete_queue(name)
    for name in the_broker.exchanges():
        if name and not name.startswith("amq."):
            the_broker.delete_exchange(name)
    return the_broker


@pytest.fixture
def api() -> Iterator[RoleApi]:
    """A Role API that is well."""
    with RoleApi() as api:
        yield api


def cuks(count: int) -> list[str]:
    """Fresh instance ids."""
    return [str(uuid.uuid4()) for _ in range(count)]
