"""The pytest plugin of all tests: fixtures that they share, and the marker of what uses a broker.

`.pytest.ini` loads it and declares the markers. A test file may have a fixture of its own in place
of one of these.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from lab.broker import Broker
from lab.certificates import Certificates, Pair
from lab.role_api import RoleApi


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for this run."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def served(certificates: Certificates) -> Pair:
    """The files that the broker serves, whatever certificate is copied there."""
    pair = Pair(certificates.folder / "served.crt", certificates.folder / "served.key")
    for source, target in zip(certificates.server, pair):
        shutil.copy(source, target)
    return pair


@pytest.fixture(scope="module")
def the_broker(certificates: Certificates, served: Pair) -> Iterator[Broker]:
    """One RabbitMQ for all tests of a file, also those that kill it or raise its alarm."""
    with Broker(certificates, served) as broker:
        yield broker


@pytest.fixture
def broker(the_broker: Broker) -> Broker:
    """The RabbitMQ, running, without queues and exchanges of an earlier test."""
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark `broker` what uses a fixture of such a name, directly or not: `make unit` omits it."""
    for item in items:
        if any(name.endswith("broker") for name in getattr(item, "fixturenames", ())):
            item.add_marker("broker")
