"""Neutron's part of `lab.openstack`: binds each port to whatever host wants it, without an agent.

It is loaded by Neutron in `.venv-cloud`, and imports nothing of this project.
"""

from __future__ import annotations

from typing import Any

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.plugins.ml2 import api


class AnyHost(api.MechanismDriver):  # type: ignore[misc]
    """A mechanism driver whose ports are active at once."""

    def initialize(self) -> None:
        """Does nothing: there is no agent to prepare."""

    def bind_port(self, context: Any) -> None:
        """Binds the port to the first segment of its network."""
        context.set_binding(
            context.segments_to_bind[0][api.ID],
            portbindings.VIF_TYPE_OVS,
            {portbindings.CAP_PORT_FILTER: True},
            constants.ACTIVE,
        )
