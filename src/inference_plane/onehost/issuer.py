"""A stand-in for the issuer of tokens: it makes its own keys, signs tokens, and serves its key set.

Keys live in memory alone and are made anew each time, so none is ever in a file of the repository.
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from .serving import Receive, Scope, Send, send_json

ISSUER = "https://issuer.example/oauth2/default"
AUDIENCE = "inference"


class Issuer:
    """Signs with RS256; `name` is the newest key's `kid`.

    As an ASGI application it answers every GET with its key set, or with `status` where that is not 200; `fetches`
    counts them.
    """

    def __init__(self) -> None:
        self.keys: dict[str, rsa.RSAPrivateKey] = {}
        self.status, self.fetches = 200, 0
        self.rotate()

    def rotate(self, *, keep: int = 1) -> None:
        """A new key, the newest from now on; of the others the last `keep` stay in the set."""
        number = int(self.name.rpartition("-")[2]) + 1 if self.keys else 1
        kept = list(self.keys.items())[-keep:] if keep else []
        self.keys = {**dict(kept), f"key-{number}": rsa.generate_private_key(public_exponent=65537, key_size=2048)}

    @property
    def name(self) -> str:
        return list(self.keys)[-1]

    def key_set(self) -> dict[str, Any]:
        """The public keys as a JSON Web Key Set."""
        return {"keys": [self._public(name) for name in self.keys]}

    def values(self, *, uri: str = "", **more: Any) -> dict[str, Any]:
        """The router's `auth` for this issuer: its keys inline, or where they are fetched."""
        keys = {"uri": uri} if uri else {"inline": self.key_set()}
        return {"mode": "jwt", "issuer": ISSUER, "audiences": [AUDIENCE], "jwks": keys, **more}

    def token(self, groups: Any = None, *, key: str = "", seconds: float = 300, **claims: Any) -> str:
        """A token for a caller, good for so many seconds; a claim that is None is left out."""
        now = time.time()
        content = {"iss": ISSUER, "aud": AUDIENCE, "sub": "person-1", "iat": int(now), "exp": int(now + seconds)}
        content = {**content, "groups": groups, **claims}
        content = {name: value for name, value in content.items() if value is not None}
        name = key or self.name
        return jwt.encode(content, self.keys[name], algorithm="RS256", headers={"kid": name})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.fetches += 1
            await send_json(send, self.status, self.key_set() if self.status == 200 else {})

    def _public(self, name: str) -> dict[str, Any]:
        numbers = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.keys[name].public_key()))
        return {"kid": name, "use": "sig", "alg": "RS256", **{part: numbers[part] for part in ("kty", "n", "e")}}


class Authority:
    """A certificate authority of one day, for servers on loopback; `pem` is its certificate."""

    def __init__(self, name: str = "one day") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        self._certificate = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self.pem = self._pem(self._certificate.sign(self._key, hashes.SHA256()))

    def vouch(self, folder: Path, name: str) -> str:
        """The path of a file with a certificate for `name` and its key (PEM), in `folder` and for its owner alone."""
        file = folder / f"{name}.pem"
        file.touch(mode=0o600)
        secret = self.secret(name)
        file.write_text(secret["tls.crt"] + secret["tls.key"])
        return str(file)

    def secret(self, *names: str, ended: bool = False) -> dict[str, str]:
        """What a Secret has of a certificate for DNS names: tls.crt, tls.key, ca.crt. An `ended` one is too old."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = self._builder(subject, key, datetime.timedelta(days=2 if ended else 0))
        certificate = builder.add_extension(alternatives, critical=False).sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {"tls.crt": self._pem(certificate), "tls.key": private.decode(), "ca.crt": self.pem}

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, ago: datetime.timedelta = datetime.timedelta()
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC) - ago
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    @staticmethod
    def _pem(certificate: x509.Certificate) -> str:
        return certificate.public_bytes(serialization.Encoding.PEM).decode()
