"""Tokens that no server may accept, for any key."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from taskflow_gql.security.keys import Key, PrivateKey, PublicKey, jwks_of, make_private_key, pem_of


@dataclass(frozen=True)
class Target:
    """What an attacker knows of a good token: its claims, its header and the public key."""

    key: Key
    claims: dict[str, Any]

    @property
    def header(self) -> dict[str, Any]:
        return {"typ": "JWT", "alg": self.key.algorithm, "kid": self.key.kid}

    def signed(self, *, header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None) -> str:
        """A token signed with the right key: what a faulty issuer may make. Values of None are left out."""
        return self.assembled(self.header | (header or {}), self.claims | (claims or {}))

    def assembled(self, header: dict[str, Any], claims: dict[str, Any], *, signing: Any = None) -> str:
        text = f"{encoded(without_none(header))}.{encoded(without_none(claims))}"
        algorithm = jwt.get_algorithm_by_name(self.key.algorithm)
        signature = algorithm.sign(text.encode(), algorithm.prepare_key(signing or self.key.signing))
        return f"{text}.{base64url(signature)}"

    def with_secret(self, secret: bytes, algorithm: str = "HS256", **header: Any) -> str:
        """A token signed with something that everybody knows."""
        text = f"{encoded(self.header | {'alg': algorithm} | header)}.{encoded(self.claims)}"
        # PyJWT refuses a public key as a secret. An attacker does not.
        signature = jwt.get_algorithm_by_name(algorithm).sign(text.encode(), secret)
        return f"{text}.{base64url(signature)}"

    def by_stranger(self, **header: Any) -> str:
        return self.assembled(self.header | header, self.claims, signing=_strangers_key(self.key.algorithm))

    def unsigned(self, algorithm: str) -> str:
        return f"{encoded(self.header | {'alg': algorithm})}.{encoded(self.claims)}."

    @property
    def parts(self) -> list[str]:
        return self.signed().split(".")

    @property
    def public_pem(self) -> bytes:
        return (
            pem_of(self.key.verifying) if isinstance(self.key.verifying, PublicKey) else b"no public key at all......"
        )

    @property
    def public_der(self) -> bytes:
        if isinstance(self.key.verifying, PublicKey):
            return self.key.verifying.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return b"no public key at all......"


@cache
def _strangers_key(algorithm: str) -> PrivateKey | str:
    return "the secret of somebody else entirely" if algorithm == "HS256" else make_private_key(algorithm)


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def encoded(value: object) -> str:
    return base64url(json.dumps(value).encode())


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _with_der_signature(target: Target) -> str:
    header, claims, signature = target.parts
    raw = base64.urlsafe_b64decode(signature + "==")
    half = len(raw) // 2
    numbers = (int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))
    return f"{header}.{claims}.{base64url(encode_dss_signature(*numbers))}"


def _with_last_character_changed(target: Target) -> str:
    """The last character of most signatures has bits that belong to no byte."""
    token = target.signed()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


PAST, FUTURE = 1_000_000_000, 4_000_000_000
Make: TypeAlias = Callable[[Target], str]

HOSTILE: dict[str, Make] = {
    # The algorithm.
    "alg none": lambda target: target.unsigned("none"),
    "alg None": lambda target: target.unsigned("None"),
    "alg none with a signature": lambda target: target.unsigned("none") + target.parts[2],
    "alg empty": lambda target: target.unsigned(""),
    "no alg": lambda target: target.signed(header={"alg": None}),
    "alg in lower case": lambda target: target.signed(header={"alg": target.key.algorithm.lower()}),
    "alg a list": lambda target: target.signed(header={"alg": [target.key.algorithm]}),
    "alg of another size": lambda target: target.signed(header={"alg": f"{target.key.algorithm[:2]}512"}),
    "alg of another family": lambda target: target.signed(
        header={"alg": "ES256" if target.key.algorithm != "ES256" else "EdDSA"}
    ),
    "alg PS256": lambda target: target.signed(header={"alg": "PS256"}),
    "public key as secret": lambda target: target.with_secret(target.public_pem),
    "public key as secret, stripped": lambda target: target.with_secret(target.public_pem.strip()),
    "public key as secret, DER": lambda target: target.with_secret(target.public_der),
    "public key as secret of HS512": lambda target: target.with_secret(target.public_pem, "HS512"),
    "public JWK as secret": lambda target: target.with_secret(json.dumps(jwks_of([target.key])).encode()),
    "kid as secret": lambda target: target.with_secret(target.key.kid.encode()),
    "empty secret": lambda target: target.with_secret(b""),
    # The key.
    "key of a stranger": lambda target: target.by_stranger(),
    "key of a stranger, without kid": lambda target: target.by_stranger(kid=None),
    "key of a stranger in jwk": lambda target: target.by_stranger(
        jwk=jwks_of([Key(target.key.kid, "EdDSA", make_private_key("EdDSA").public_key())])["keys"][0]
    ),
    "key of a stranger at jku": lambda target: target.by_stranger(jku="http://127.0.0.1:1/jwks.json"),
    "key of a stranger at x5u": lambda target: target.by_stranger(x5u="http://127.0.0.1:1/chain.pem"),
    "key of a stranger in x5c": lambda target: target.by_stranger(x5c=["MIIB"]),
    "kid of a file": lambda target: target.with_secret(b"", kid="../../../../dev/null"),
    "kid of SQL": lambda target: target.by_stranger(kid="' UNION SELECT 'secret"),
    "kid of a command": lambda target: target.by_stranger(kid="| id"),
    "kid too long": lambda target: target.signed(header={"kid": "k" * 256}),
    "kid a number": lambda target: target.signed(header={"kid": 1}),
    "kid a list": lambda target: target.signed(header={"kid": [target.key.kid]}),
    "kid null": lambda target: f"{encoded(target.header | {'kid': None})}.{target.parts[1]}.{target.parts[2]}",
    # The header.
    "crit of an extension": lambda target: target.signed(header={"crit": ["exp"], "exp": FUTURE}),
    "crit b64": lambda target: target.signed(header={"crit": ["b64"], "b64": True}),
    "crit empty": lambda target: target.signed(header={"crit": []}),
    "crit a text": lambda target: target.signed(header={"crit": "b64"}),
    "detached payload": lambda target: f"{encoded(target.header | {'b64': False, 'crit': ['b64']})}..{target.parts[2]}",
    "typ of an encrypted token": lambda target: target.signed(header={"typ": "JWE"}),
    "typ of a proof": lambda target: target.signed(header={"typ": "dpop+jwt"}),
    "typ of a logout": lambda target: target.signed(header={"typ": "logout+jwt"}),
    "typ a list": lambda target: target.signed(header={"typ": ["JWT"]}),
    # The claims.
    "iss of somebody else": lambda target: target.signed(claims={"iss": "https://evil.example"}),
    "iss with a slash": lambda target: target.signed(claims={"iss": f"{target.claims['iss']}/"}),
    "iss a list": lambda target: target.signed(claims={"iss": [target.claims["iss"]]}),
    "no iss": lambda target: target.signed(claims={"iss": None}),
    "aud of somebody else": lambda target: target.signed(claims={"aud": "https://evil.example"}),
    "aud a list of others": lambda target: target.signed(claims={"aud": ["a", "b"]}),
    "aud a list with a number": lambda target: target.signed(claims={"aud": [target.claims["aud"], 1]}),
    "aud an object": lambda target: target.signed(claims={"aud": {target.claims["aud"]: 1}}),
    "no aud": lambda target: target.signed(claims={"aud": None}),
    "expired": lambda target: target.signed(claims={"exp": PAST}),
    "no exp": lambda target: target.signed(claims={"exp": None}),
    "exp a text": lambda target: target.signed(claims={"exp": str(FUTURE)}),
    "exp true": lambda target: target.signed(claims={"exp": True}),
    "exp infinite": lambda target: target.signed(claims={"exp": float("inf")}),
    "exp after all times": lambda target: target.signed(claims={"exp": 10**18}),
    "not yet valid": lambda target: target.signed(claims={"nbf": FUTURE}),
    "nbf a list": lambda target: target.signed(claims={"nbf": [PAST]}),
    "from the future": lambda target: target.signed(claims={"iat": FUTURE}),
    "no sub": lambda target: target.signed(claims={"sub": None}),
    "sub empty": lambda target: target.signed(claims={"sub": ""}),
    "sub a number": lambda target: target.signed(claims={"sub": 4711}),
    "sub an object": lambda target: target.signed(claims={"sub": {"$ne": ""}}),
    "sub with NUL": lambda target: target.signed(claims={"sub": "4711\x00"}),
    "sub with half a character": lambda target: target.signed(claims={"sub": "\ud800"}),
    "sub too long": lambda target: target.signed(claims={"sub": "4" * 256}),
    # The text.
    "signature cut off": lambda target: ".".join(target.parts[:2]) + ".",
    "no signature part": lambda target: ".".join(target.parts[:2]),
    "signature shortened": lambda target: target.signed()[:-4],
    "signature extended": lambda target: f"{target.signed()}AAAA",
    "signature with other unused bits": _with_last_character_changed,
    "signature padded": lambda target: target.signed() + "=" * (-len(target.parts[2]) % 4 or 4),
    "signature of another token": lambda target: ".".join(
        [*target.parts[:2], target.signed(claims={"sub": "another"}).split(".")[2]]
    ),
    "signature in DER": _with_der_signature,
    "signature of zeros": lambda target: ".".join([*target.parts[:2], base64url(bytes(64))]),
    "claims changed": lambda target: ".".join(
        [target.parts[0], encoded(target.claims | {"sub": "00000000-0000-7000-8000-000000000000"}), target.parts[2]]
    ),
    "a blank before": lambda target: f" {target.signed()}",
    "a line break inside": lambda target: target.signed().replace(".", ".\n", 1),
    "standard base64": lambda target: target.signed().replace(".", ".+/", 1),
    "four parts": lambda target: f"{target.signed()}.",
    "five parts": lambda target: f"{target.signed()}.a.b",
    "JSON serialisation": lambda target: json.dumps(
        {"protected": target.parts[0], "payload": target.parts[1], "signature": target.parts[2]}
    ),
    "claims a list": lambda target: f"{target.parts[0]}.{encoded([target.claims])}.{target.parts[2]}",
    "header nested": lambda target: f"{base64url(b'[' * 5000)}.{target.parts[1]}.{target.parts[2]}",
    "nothing": lambda _: "",
    "dots": lambda _: "..",
}
