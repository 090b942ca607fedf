"""Certificates for TLS tests, made on the spot: good, expired, for another host, of another CA."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any, NamedTuple

import trustme

#: The host name in the certificate that is not valid for this machine.
OTHER_HOST = "other.example.com"


class Pair(NamedTuple):
    """A certificate with its chain, and its private key, as PEM files."""

    cert_file: Path
    key_file: Path


class Certificates:
    """A certificate authority and what it issued, as files in `folder`.

    Attributes:
        ca_file: the authority to trust.
        server: valid for 127.0.0.1, ::1 and localhost.
        other_host: valid for `OTHER_HOST` only.
        expired: as `server`, but until yesterday.
        unrelated_ca_file: an authority that issued none of these.
        unrelated_server: as `server`, but issued by that one.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA()
        self.ca_file = self._write_ca(self._ca, "ca")
        self.server = self._issue("server")
        self.other_host = self._issue("other-host", OTHER_HOST)
        now = datetime.datetime.now(datetime.timezone.utc)
        self.expired = self._issue(
            "expired",
            not_before=now - datetime.timedelta(days=2),
            not_after=now - datetime.timedelta(days=1),
        )
        unrelated = trustme.CA(organization_name="unrelated")
        self.unrelated_ca_file = self._write_ca(unrelated, "unrelated-ca")
        self.unrelated_server = self._issue("unrelated-server", ca=unrelated)

    def client(self, common_name: str) -> Pair:
        """A client certificate; with SASL EXTERNAL the broker takes its common name as user."""
        return self._issue(f"client-{common_name}", f"{common_name}.example.com", cn=common_name)

    def context(self, name: str = "server", client: bool = False) -> ssl.SSLContext:
        """A server's TLS with one of the certificates; `client`: it insists on one of ours."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*getattr(self, name))
        if client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca_file)
        return context

    def files(self, user: str) -> dict[Any, str]:
        """What a client's settings may name: its `CERT` and `KEY`, the `CA`, and an `OTHER CA`."""
        pair = self.client(user)
        return {
            "CA": str(self.ca_file),
            "OTHER CA": str(self.unrelated_ca_file),
            "CERT": str(pair.cert_file),
            "KEY": str(pair.key_file),
        }

    def _issue(
        self,
        name: str,
        *hosts: str,
        ca: trustme.CA | None = None,
        cn: str | None = None,
        **validity: Any,
    ) -> Pair:
        hosts = hosts or ("127.0.0.1", "::1", "localhost")
        issued = (ca or self._ca).issue_cert(*hosts, common_name=cn, **validity)
        pair = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        for number, pem in enumerate(issued.cert_chain_pems):
            pem.write_to_path(str(pair.cert_file), append=number > 0)
        issued.private_key_pem.write_to_path(str(pair.key_file))
        return pair

    def _write_ca(self, ca: trustme.CA, name: str) -> Path:
        file = self.folder / f"{name}.crt"
        ca.cert_pem.write_to_path(str(file))
        return file
