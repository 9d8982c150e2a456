"""The certificate that the service serves by and the authorities that it believes, read again when they are renewed."""

from __future__ import annotations

import ssl
from pathlib import Path

from .config import Tls


class CertificateError(Exception):
    """A file is missing, or is not what it should be; the message says which one and what to set."""


class Certificates:
    """`server` stays the same object and takes each new certificate; `client` is another one for other authorities.

    Raises CertificateError where there is nothing to begin with.
    """

    def __init__(self, tls: Tls) -> None:
        self.name, self._tls = tls.name, tls
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.minimum_version = ssl.TLSVersion.TLSv1_3
        self._read: tuple[bytes, ...] = ()
        self.client = self.server
        #: When the certificate that is served ends, in seconds since 1970.
        self.ends = 0.0
        self.refresh()

    def refresh(self) -> bool:
        """Takes what is new and tells whether there was anything. Raises CertificateError and keeps what it had."""
        certificate, key, ca = (_mounted(path) for path in (self._tls.certificate, self._tls.key, self._tls.ca))
        try:
            found = certificate.read_bytes(), key.read_bytes(), ca.read_bytes()
        except OSError as error:
            raise CertificateError(f"{error.filename}: {error.strerror}. Put tls.crt, tls.key and ca.crt into the "
                                   "Secret") from error
        if found == self._read:
            return False
        try:
            ends = _ends(certificate, key)
        except (ssl.SSLError, ValueError) as error:
            raise CertificateError(f"{self._tls.certificate} and {self._tls.key} are no certificate with its key: "
                                   f"{error}. Set both in the Secret") from error
        try:
            client = ssl.create_default_context(cafile=str(ca))
        except ssl.SSLError as error:
            raise CertificateError(f"{self._tls.ca} has no authority: {error}. Set ca.crt") from error
        client.minimum_version = ssl.TLSVersion.TLSv1_3
        self.server.load_cert_chain(certificate, key)
        self.client, self.ends, self._read = client, ends, found
        return True


def _mounted(path: Path) -> Path:
    """The file of the version that holds now: the kubelet exchanges the folder behind `..data`, not the files."""
    data = path.parent / "..data"
    return data.resolve() / path.name if data.exists() else path


def _ends(certificate: Path, key: Path) -> float:
    """When a certificate ends, whoever vouches for it and however old it is.

    The standard library reads a certificate in a handshake alone, so there is one in memory, with a client that
    believes this one. Raises ssl.SSLError where the key is another one's.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(certificate, key)
    client.check_hostname = False
    client.load_verify_locations(cadata=_leaf(certificate.read_text()))
    no_check_time = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the module has no name for
    client.verify_flags = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(no_check_time)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
    for _ in range(3):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    peer = sides[0].getpeercert()
    return float(ssl.cert_time_to_seconds(str(peer["notAfter"])))


def _leaf(pem: str) -> str:
    """The first certificate of a chain."""
    end = "-----END CERTIFICATE-----"
    head, found, _ = pem.partition(end)
    if not found:
        raise ValueError("no certificate in PEM")
    return head + end
