"""Keys of this server: files, key ids, rotation, the published set, and tokens that no key accepts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from taskflow_gql import clock
from taskflow_gql.config import Settings
from taskflow_gql.errors import ConfigurationError, Unauthenticated
from taskflow_gql.security.keys import (
    Key,
    PrivateKey,
    key_of,
    key_of_secret,
    make_private_key,
    pem_of,
    read_keys,
)
from taskflow_gql.security.tokens import TokenSigner
from tests.support.accounts import login
from tests.support.hostile_tokens import HOSTILE, Make, Target
from tests.support.serving import SECRET, serving

NEXT_SECRET = "the next one, and long enough for HS256 too"
HOUR = timedelta(hours=1)
ME = "{ me { username } }"


def signed_by(signer: TokenSigner) -> str:
    return signer.sign(user_id=uuid4(), session_id=uuid4(), issued_at=clock.now())


def put(folder: Path, name: str, key: PrivateKey, *, public: bool = False) -> None:
    (folder / name).write_bytes(pem_of(key.public_key() if public else key))


# Files


def test_the_last_private_key_by_name_signs_and_all_verify(tmp_path: Path) -> None:
    keys = {name: make_private_key(name) for name in ("EdDSA", "ES256", "RS256")}
    put(tmp_path, "2026-01.pem", keys["RS256"])
    put(tmp_path, "2026-02.pem", keys["ES256"])
    put(tmp_path, "2026-03.pem", keys["EdDSA"], public=True)
    (tmp_path / "readme.txt").write_text("Not a key.")
    read = read_keys(tmp_path)
    assert [(key.algorithm, key.signing is not None) for key in read] == [
        ("EdDSA", False),
        ("ES256", True),
        ("RS256", True),
    ]
    assert {len(key.kid) for key in read} == {43}
    signer = TokenSigner(SECRET, HOUR, read)
    token = signed_by(signer)
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "kid": read[1].kid, "typ": "JWT"}
    signer.read(token)


def test_a_private_and_its_public_key_have_the_same_id(tmp_path: Path) -> None:
    for algorithm in ("EdDSA", "ES256", "RS256"):
        key = make_private_key(algorithm)
        put(tmp_path, "key.pem", key)
        put(tmp_path, "key-public.pem", key, public=True)
        private, public = read_keys(tmp_path)
        assert (private.kid, private.algorithm) == (public.kid, public.algorithm)
        signer = TokenSigner(SECRET, HOUR, [private, public])
        signer.read(signed_by(signer))


def test_key_ids_are_the_thumbprints_of_rfc_7638() -> None:
    # The key of RFC 8037, appendix A.
    text = '{"crv":"Ed25519","kty":"OKP","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}'
    assert usable(jwt.PyJWK.from_json(text).key).kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def usable(loaded: object) -> Key:
    key = key_of(loaded)
    assert key is not None
    return key


def private_pem(key: Any, *, password: bytes | None = None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return pem


UNUSABLE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"a secret of at least thirty-two bytes",
    "bytes": lambda: bytes(range(256)),
    "cut off": lambda: pem_of(make_private_key("ES256"))[:100],
    "a certificate": lambda: b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "with a password": lambda: private_pem(make_private_key("EdDSA"), password=b"secret"),
    "RSA of 1024 bits": lambda: private_pem(rsa.generate_private_key(65537, 1024)),  # noqa: S505
    "P-384": lambda: private_pem(ec.generate_private_key(ec.SECP384R1())),
    "secp256k1": lambda: private_pem(ec.generate_private_key(ec.SECP256K1())),
    "Ed448": lambda: private_pem(ed448.Ed448PrivateKey.generate()),
    "X25519": lambda: private_pem(x25519.X25519PrivateKey.generate()),
    "DSA": lambda: private_pem(dsa.generate_private_key(1024)),  # noqa: S505
}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)
def test_a_bad_key_file_is_refused_by_its_name(tmp_path: Path, make: Callable[[], bytes]) -> None:
    put(tmp_path, "1.pem", make_private_key("EdDSA"))
    (tmp_path / "2.pem").write_bytes(make())
    with pytest.raises(ConfigurationError, match=r"2\.pem is no key") as refused:
        read_keys(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["empty", "absent", "file"])
def test_a_folder_without_a_key_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=f"There is no key in .*/{name}/"):
        read_keys(tmp_path / name)


def test_an_unreadable_key_file_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "1.pem").mkdir()
    with pytest.raises(ConfigurationError, match=r"1\.pem"):
        read_keys(tmp_path)


# Rotation


def test_tokens_of_release_0_2_without_a_key_id_stay_valid() -> None:
    signer = TokenSigner(SECRET, HOUR)
    claims = jwt.decode(signed_by(signer), options={"verify_signature": False})
    old = jwt.encode(claims, SECRET, algorithm="HS256")
    assert "kid" not in jwt.get_unverified_header(old)
    for one in (signer, TokenSigner(SECRET, HOUR, [new_key()], other_secrets=[NEXT_SECRET])):
        assert one.read(old).user_id == UUID(claims["sub"])


def new_key(algorithm: str = "EdDSA") -> Key:
    return usable(make_private_key(algorithm))


def test_no_token_is_refused_during_the_documented_rotation(tmp_path: Path) -> None:
    """In each step one server is restarted before the other, and the token of either is good on both."""
    first, second = make_private_key("EdDSA"), make_private_key("ES256")
    put(tmp_path, "1.pem", first, public=True)
    servers = [TokenSigner(SECRET, HOUR), TokenSigner(SECRET, HOUR, read_keys(tmp_path))]
    for name, key, is_public in (("1.pem", first, False), ("2.pem", second, True), ("2.pem", second, False)):
        put(tmp_path, name, key, public=is_public)
        servers.append(TokenSigner(SECRET, HOUR, read_keys(tmp_path)))
    (tmp_path / "1.pem").unlink()
    servers.append(TokenSigner(SECRET, HOUR, read_keys(tmp_path)))

    tokens = [signed_by(server) for server in servers]
    signing = [jwt.get_unverified_header(token)["alg"] for token in tokens]
    assert signing == ["HS256", "HS256", "EdDSA", "EdDSA", "ES256", "ES256"]
    for step in range(len(servers) - 1):
        for server in servers[step : step + 2]:
            for token in tokens[step : step + 2]:
                server.read(token)
    with pytest.raises(Unauthenticated):
        servers[-1].read(tokens[2])


def test_a_secret_is_replaced_without_a_refused_token() -> None:
    servers = [
        TokenSigner(SECRET, HOUR),
        TokenSigner(SECRET, HOUR, other_secrets=[NEXT_SECRET]),
        TokenSigner(NEXT_SECRET, HOUR, other_secrets=[SECRET]),
    ]
    for older, newer in pairwise(servers):
        for signer in (older, newer):
            token = signed_by(signer)
            older.read(token)
            newer.read(token)
    with pytest.raises(Unauthenticated):
        TokenSigner(NEXT_SECRET, HOUR).read(signed_by(servers[0]))


# Over HTTP


async def test_a_server_with_keys_signs_with_them_and_still_accepts_its_secrets_tokens(
    sqlite_settings: Settings, tmp_path: Path
) -> None:
    async with serving(sqlite_settings) as api:
        ann = await api.register("ann")
        response = await api.http.get("/.well-known/jwks.json")
        assert response.json() == {"keys": []}
    folder = tmp_path / "keys"
    folder.mkdir()
    put(folder, "1.pem", make_private_key("ES256"))
    put(folder, "2.pem", make_private_key("EdDSA"))
    async with serving(sqlite_settings.model_copy(update={"signing_keys": folder})) as api:
        assert await api.data(ME, by=ann) == {"me": {"username": "ann"}}
        token = (await login(api, "ann", ann.password))["accessToken"]
        assert jwt.get_unverified_header(token)["alg"] == "EdDSA"
        assert await api.post(ME, by=token) == {"data": {"me": {"username": "ann"}}}
        response = await api.http.get("/.well-known/jwks.json")
        published = response.json()["keys"]
        assert response.headers["cache-control"] == "public, max-age=300"
    assert [sorted(key) for key in published] == [
        ["alg", "crv", "kid", "kty", "use", "x"],
        ["alg", "crv", "kid", "kty", "use", "x", "y"],
    ]
    # What another service does with the set.
    key = jwt.PyJWKSet.from_dict({"keys": published})[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, audience="taskflow", issuer="taskflow")
    assert claims["sub"] == ann.id


async def test_two_servers_rotate_without_a_refused_request(postgresql_settings: Settings, tmp_path: Path) -> None:
    """Each step restarts one server and then the other. People sign in at both, and use every token at both."""
    folders = [tmp_path / "here", tmp_path / "there"]
    first, second = make_private_key("EdDSA"), make_private_key("RS256")
    for folder in folders:
        folder.mkdir()
        put(folder, "1.pem", first)
    settings = [postgresql_settings.model_copy(update={"signing_keys": folder}) for folder in folders]
    async with serving(settings[0]) as api:
        ann = await api.register("ann")
    tokens = [ann.token]
    for is_public in (True, False):
        for restarted in folders:
            put(restarted, "2.pem", second, public=is_public)
            async with serving(settings[0]) as here, serving(settings[1]) as there:
                for api in (here, there):
                    tokens.append((await login(api, "ann", ann.password))["accessToken"])
                answers = [await api.codes(ME, by=token) for api in (here, there) for token in tokens]
                assert answers == [[]] * (2 * len(tokens))
    signed = [jwt.get_unverified_header(token)["alg"] for token in tokens]
    assert signed == ["EdDSA"] * 5 + ["RS256", "EdDSA", "RS256", "RS256"]


# Hostile tokens


def own_target(algorithm: str) -> tuple[TokenSigner, Target]:
    key = key_of_secret(SECRET) if algorithm == "HS256" else new_key(algorithm)
    signer = TokenSigner(SECRET, HOUR, [] if algorithm == "HS256" else [key])
    return signer, Target(key, jwt.decode(signed_by(signer), options={"verify_signature": False}))


OWN = {algorithm: own_target(algorithm) for algorithm in ("HS256", "EdDSA", "ES256", "RS256")}


@pytest.mark.parametrize("algorithm", OWN)
def test_the_good_token_of_the_table_is_accepted(algorithm: str) -> None:
    signer, target = OWN[algorithm]
    for header in ({}, {"typ": None}, {"typ": "at+jwt"}, {"jku": "https://evil.example"}, {"x": "unknown"}):
        signer.read(target.signed(header=header))


@pytest.mark.parametrize("algorithm", OWN)
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_no_hostile_token_is_accepted_for_an_own_key(algorithm: str, make: Make) -> None:
    signer, target = OWN[algorithm]
    with pytest.raises(Unauthenticated, match=r"^Could not validate credentials$"):
        signer.read(make(target))


async def test_no_hostile_token_is_accepted_over_http(sqlite_settings: Settings) -> None:
    """For a person and a session that exist."""
    async with serving(sqlite_settings) as api:
        ann = await api.register("ann")
        target = Target(key_of_secret(SECRET), jwt.decode(ann.token, options={"verify_signature": False}))
        assert await api.codes(ME, by=target.signed()) == []
        tokens = {name: make(target) for name, make in HOSTILE.items()}
        sent = {name: token for name, token in tokens.items() if token and token == token.strip() and "\n" not in token}
        assert len(sent) > len(HOSTILE) - 5
        answers = {name: await api.codes(ME, by=token) for name, token in sent.items()}
    assert {name for name, codes in answers.items() if codes != ["UNAUTHENTICATED"]} == set()
