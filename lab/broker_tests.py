"""Tests of what RabbitMQ has only from 4.0 on: `make test RELEASE=trixie` (4.0) or `sid` (4.3).

RabbitMQ 4 deprecates some features, queues that are neither durable nor exclusive among them, and
can refuse them. The makers' own 4.3 does so by default (its release notes say which); Debian's has
to be told.

Not named `test_…`, so that pytest takes it only where it is asked for: 3.10 has none of this.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from lab import wait_until
from lab.broker import Broker
from lab.listener import ListenerProcess, settings
from lab.notifier import Notifier, noise, port
from lab.role_api import RoleApi

POOL, DEFAULT = "k2hr3_osnl", "notifications.info"
REFUSED = ("transient_nonexcl_queues", "global_qos")


@pytest.fixture(scope="module")
def the_broker() -> Iterator[Broker]:
    """A RabbitMQ that refuses those."""
    config = {f"deprecated_features.permit.{name}": "false" for name in REFUSED}
    with Broker(config=config) as broker:
        yield broker


def publish(service: Notifier) -> None:
    """Have a service publish something, for which it makes its exchange and default queue."""
    service.notify(*noise()[0])


def is_heard(broker: Broker, service: Notifier, api: RoleApi) -> None:
    """Check that a deletion gets from this service, which has published before, to the API."""
    cuk = str(uuid.uuid4())
    with ListenerProcess(settings(broker.url(), api.url)):
        wait_until(lambda: broker.bindings(POOL), 20, f"{POOL} to be bound")
        service.notify("port.delete.end", port(cuk, ["10.0.0.1"]))
        wait_until(lambda: cuk in api.deleted)
    assert service.errors == []


@pytest.mark.parametrize("quorum", [False, True], ids=["classic", "quorum"])
def test_services_with_durable_queues_are_heard(broker: Broker, api: RoleApi, quorum: bool) -> None:
    with Notifier(broker.url(), durable=not quorum, quorum=quorum) as neutron:
        publish(neutron)
        is_heard(broker, neutron, api)


def test_a_service_without_durable_queues_needs_them_and_a_new_exchange(
    broker: Broker, api: RoleApi
) -> None:
    # Given a service that can't make its default queue, and so publishes nothing
    with Notifier(broker.url()) as neutron:
        publish(neutron)
        assert "541" in neutron.errors[0]
        assert "transient_nonexcl_queues" in neutron.errors[0]
    assert DEFAULT not in broker.queues()
    # When it has amqp_durable_queues, but its exchange is still the old one
    assert not broker.exchanges()["neutron"]["durable"]
    with Notifier(broker.url(), durable=True) as neutron:
        publish(neutron)
        # Then it still publishes nothing
        assert "406" in neutron.errors[0]
    # When that is deleted
    broker.delete_exchange("neutron")
    with Notifier(broker.url(), durable=True) as neutron:
        publish(neutron)
        is_heard(broker, neutron, api)


def test_dump_has_a_queue_of_its_own(broker: Broker, api: RoleApi) -> None:
    with Notifier(broker.url(), durable=True) as neutron:
        publish(neutron)
        before = broker.queues().keys()
        cuk = str(uuid.uuid4())
        sections = settings(broker.url(), api.url)
        with ListenerProcess(sections, "dump", "--count", "1") as dump:
            (own,) = wait_until(lambda: broker.queues().keys() - before)
            wait_until(lambda: broker.bindings(own))
            neutron.notify("port.delete.end", port(cuk, ["10.0.0.1"]))
            assert dump.process.wait(10) == 0
            assert cuk in dump.log
    wait_until(lambda: broker.queues().keys() == before)
