"""Keys that sign and verify tokens. Each key has one algorithm; a token's header never chooses it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jwt.algorithms import get_default_algorithms

from taskflow_gql.errors import ConfigurationError

PrivateKey: TypeAlias = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey
PublicKey: TypeAlias = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey

# RFC 7518 requires it.
_MIN_RSA_BITS = 2048
# Longer key ids are refused. Ours have 43 characters.
_MAX_KID_LENGTH = 255
# The members of a public JWK, which its thumbprint is made of (RFC 7638). A published private key has more.
_PUBLIC_MEMBERS = {"OKP": ("crv", "kty", "x"), "EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n")}
_CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_OWN_ALGORITHMS = ("EdDSA", "ES256", "RS256")
# The end of the year 9999, in seconds since 1970. datetime has no later time.
_END_OF_TIME = 253_402_300_800
# How far the clock of whoever signs may be ahead of ours.
_CLOCK_SKEW_SECONDS = 180
_TOKEN_TYPES = ("jwt", "at+jwt", "application/at+jwt")


@dataclass(frozen=True, slots=True)
class Key:
    """One key and its algorithm. Without `signing` it only verifies."""

    kid: str
    algorithm: str
    verifying: PublicKey | str
    signing: PrivateKey | str | None = None


def key_of_secret(secret: str) -> Key:
    """The HS256 key. Its id tells nothing about the secret that a signature does not tell."""
    digest = hmac.digest(secret.encode(), b"kid", "sha256")
    return Key(_base64url(digest), "HS256", secret, secret)


def key_of(loaded: object) -> Key | None:
    """The key, which signs if it is private; None if it is of a kind that this server does not sign with."""
    signing = loaded if isinstance(loaded, PrivateKey) else None
    public = loaded if signing is None else signing.public_key()
    algorithm = _algorithm_for(public, _OWN_ALGORITHMS)
    if algorithm is None:
        return None
    assert isinstance(public, PublicKey)
    return Key(_thumbprint(algorithm, public), algorithm, public, signing)


def read_keys(folder: Path) -> list[Key]:
    """The keys in a folder's `.pem` files, the last by name first.

    Raises ConfigurationError, with the name of the file, for anything else than a key that is safe to use.
    """
    try:
        keys = [_read_key(path) for path in sorted(folder.glob("*.pem"), reverse=True)]
    except OSError as error:
        raise ConfigurationError(f"Cannot read the keys in {folder}: {error}") from error
    if not keys:
        raise ConfigurationError(f"There is no key in {folder}/*.pem: `taskflow make-key` makes one")
    return keys


def _read_key(path: Path) -> Key:
    text = path.read_bytes()
    try:
        is_private = b"PRIVATE KEY-----" in text
        loaded: object = load_pem_private_key(text, password=None) if is_private else load_pem_public_key(text)
    # TypeError: the key has a password.
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path} is no key in PEM, or it is damaged or has a password") from error
    key = key_of(loaded)
    if key is None:
        raise ConfigurationError(
            f"{path} is no key that can be used: make one of Ed25519, of P-256, or of RSA with {_MIN_RSA_BITS} bits"
        )
    return key


def make_private_key(algorithm: str) -> PrivateKey:
    match algorithm:
        case "EdDSA":
            return Ed25519PrivateKey.generate()
        case "ES256":
            return generate_private_key(SECP256R1())
        case "RS256":
            return generate_rsa_key(public_exponent=65537, key_size=3072)
    raise ValueError(algorithm)


def pem_of(key: PrivateKey | PublicKey) -> bytes:
    if isinstance(key, PublicKey):
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def jwks_of(keys: Collection[Key]) -> dict[str, list[dict[str, str]]]:
    """The JSON Web Key Set (RFC 7517) of these keys, without secrets."""
    published = []
    for key in keys:
        if not isinstance(key.verifying, str):
            jwk = _public_jwk(key.algorithm, key.verifying)
            published.append({**jwk, "kid": key.kid, "alg": key.algorithm, "use": "sig"})
    return {"keys": published}


def keys_of_jwks(jwks: object, algorithms: Sequence[str]) -> dict[str, Key]:
    """The keys of another server by their id, of those that may verify with one of these algorithms.

    A key without an id has the id "". Secrets are left out: nobody publishes one. Raises ValueError if this is no JWKS.
    """
    listed = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is no JSON Web Key Set")
    keys = (_key_of_jwk(jwk, algorithms) for jwk in listed if isinstance(jwk, dict))
    return {key.kid: key for key in keys if key is not None}


def _key_of_jwk(jwk: Mapping[str, Any], algorithms: Sequence[str]) -> Key | None:
    kid, use, named = jwk.get("kid", ""), jwk.get("use", "sig"), jwk.get("alg")
    members = _PUBLIC_MEMBERS.get(str(jwk.get("kty")))
    if members is None or use != "sig" or not isinstance(kid, str) or len(kid) > _MAX_KID_LENGTH:
        return None
    try:
        public = jwt.PyJWK({name: jwk.get(name) for name in members}).key
    # PyJWT expects text in the members.
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError, UnsupportedAlgorithm):
        return None
    algorithm = _algorithm_for(public, algorithms if named is None else [name for name in algorithms if name == named])
    return None if algorithm is None else Key(kid, algorithm, public)


def _algorithm_for(public: object, algorithms: Sequence[str]) -> str | None:
    """The first of the algorithms that suits the key; None if none does."""
    suitable: Sequence[str] = ()
    match public:
        case Ed25519PublicKey():
            suitable = ("EdDSA",)
        case EllipticCurvePublicKey():
            suitable = (_CURVE_ALGORITHMS.get(public.curve.name, ""),)
        case RSAPublicKey() if public.key_size >= _MIN_RSA_BITS:
            suitable = _RSA_ALGORITHMS
    return next((name for name in algorithms if name in suitable), None)


def _public_jwk(algorithm: str, public: PublicKey) -> dict[str, str]:
    jwk: dict[str, str] = get_default_algorithms()[algorithm].to_jwk(public, as_dict=True)
    return {name: jwk[name] for name in _PUBLIC_MEMBERS[jwk["kty"]]}


def _thumbprint(algorithm: str, public: PublicKey) -> str:
    text = json.dumps(_public_jwk(algorithm, public), separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(text.encode()).digest())


def _base64url(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def read_kid(token: str) -> str | None:
    """The id of the key that the token names, to choose one of ours by. Nothing is verified yet.

    Raises jwt.PyJWTError for a header that no token needs: an extension (`crit`), another type, a long id.
    """
    # PyJWT accepts padding, which RFC 7515 forbids: a token could be written in several ways.
    if "=" in token:
        raise jwt.InvalidTokenError("The token has padding")
    header = jwt.get_unverified_header(token)
    kid = header.get("kid")
    if "crit" in header or str(header.get("typ", "JWT")).lower() not in _TOKEN_TYPES:
        raise jwt.InvalidTokenError("The token's header is not supported")
    if kid is not None and len(kid) > _MAX_KID_LENGTH:
        raise jwt.InvalidTokenError("The token's key id is too long")
    return kid


def verify(token: str, key: Key, *, issuer: str, audience: str, require: Sequence[str]) -> dict[str, Any]:
    """The claims of a token that this key signed. Raises jwt.PyJWTError, or ValueError for odd dates.

    The token may have expired since up to the clock skew, or at any time later: callers check `exp` themselves.
    """
    claims: dict[str, Any] = jwt.decode(
        token,
        key.verifying,
        algorithms=[key.algorithm],
        audience=audience,
        issuer=issuer,
        leeway=_CLOCK_SKEW_SECONDS,
        options={"require": ["exp", *require], "enforce_minimum_key_length": True},
    )
    # PyJWT also accepts booleans, and numbers beyond the range of datetime.
    if not all(_is_date(claims.get(name, 0)) for name in ("exp", "iat", "nbf")):
        raise ValueError("A date is no whole number of seconds")
    return claims


def _is_date(claim: object) -> bool:
    return type(claim) is int and 0 <= claim < _END_OF_TIME
