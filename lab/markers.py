"""The pytest plugin that marks each test that uses a broker, so that `make unit` can leave it out.

`.pytest.ini` loads it and declares the markers.
"""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark `broker` what uses a fixture of such a name, directly or not."""
    for item in items:
        if any(name.endswith("broker") for name in getattr(item, "fixturenames", ())):
            item.add_marker("broker")
