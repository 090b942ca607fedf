"""The pytest plugin of all tests: fixtures that they share, and the marker of what uses a broker.

`.pytest.ini` loads it and declares the markers. A test file may have a fixture of its own in place
of one of these.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.broker import Broker
from lab.role_api import RoleApi


@pytest.fixture(scope="module")
def the_broker() -> Iterator[Broker]:
    """A RabbitMQ for all tests of a file."""
    with Broker() as broker:
        yield broker


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
