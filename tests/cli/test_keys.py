"""The commands make-key and link-identity, and what serve and doctor say about keys."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from taskflow_gql.cli.main import app
from taskflow_gql.config import Settings
from taskflow_gql.security.keys import key_of, make_private_key, pem_of, read_keys
from tests.support.issuers import SignInServer, trusting
from tests.support.serving import SECRET, serving


def taskflow(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "500", **environment})


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
def test_make_key_writes_a_private_key_and_prints_the_public_one(tmp_path: Path, algorithm: str) -> None:
    folder, other = tmp_path / "keys", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    made = taskflow("make-key", "keys/1.pem", "--algorithm", algorithm)
    assert (made.exit_code, made.stderr) == (0, "")
    assert stat.S_IMODE((folder / "1.pem").stat().st_mode) == 0o600
    (private,) = read_keys(folder)
    assert (private.algorithm, private.signing is not None) == (algorithm, True)
    (other / "1.pem").write_text(made.stdout)
    (public,) = read_keys(other)
    assert (public.kid, public.signing) == (private.kid, None)


def test_make_key_overwrites_nothing(tmp_path: Path) -> None:
    taskflow("make-key", "1.pem")
    before = (tmp_path / "1.pem").read_text()
    again = taskflow("make-key", "1.pem")
    assert (again.exit_code, again.stdout) == (3, "")
    assert again.stderr == "taskflow: Cannot write 1.pem: File exists\n"
    assert (tmp_path / "1.pem").read_text() == before
    assert taskflow("make-key", "1.key").stderr == "taskflow: 1.key has to end in .pem\n"


def test_serve_refuses_a_bad_key_file_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "1.pem").write_text("nonsense")
    ran = taskflow("serve", TASKFLOW_SIGNING_KEYS=str(tmp_path))
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == f"taskflow: {tmp_path}/1.pem is no key in PEM, or it is damaged or has a password\n"


def test_doctor_says_which_key_signs(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    key = make_private_key("EdDSA")
    known = key_of(key)
    assert known is not None
    (folder / "1.pem").write_bytes(pem_of(key.public_key()))
    assert "1 in keys; the secret signs" in taskflow("doctor", TASKFLOW_SIGNING_KEYS="keys").stdout
    (folder / "1.pem").write_bytes(pem_of(key))
    assert f"1 in keys; {known.kid} (EdDSA) signs" in taskflow("doctor", TASKFLOW_SIGNING_KEYS="keys").stdout
    (folder / "2.pem").write_text("nonsense")
    ran = taskflow("doctor", TASKFLOW_SIGNING_KEYS="keys")
    assert ran.exit_code == 1
    assert "keys/2.pem is no key" in ran.stdout


async def test_link_identity_lets_a_person_of_an_issuer_sign_in(sqlite_settings: Settings) -> None:
    with SignInServer() as auth:
        settings = trusting(sqlite_settings, auth.trusted)
        entry = {"issuer": auth.issuer, "audience": auth.trusted.audience, "jwks_url": auth.url}
        environment = {
            "DATABASE_URL": str(sqlite_settings.database_url),
            "SECRET_KEY": SECRET,
            "TASKFLOW_TRUSTED_ISSUERS": json.dumps([entry]),
        }
        async with serving(settings) as api:
            ann = await api.register("ann")
            token = auth.token(email=ann.email)
            assert await api.codes("{ me { id } }", by=token) == ["UNAUTHENTICATED"]
            ran = await linked("ann", auth.issuer, environment)
            assert (ran.exit_code, ran.stdout) == (0, f"4711 of {auth.issuer} is ann from now on.\n")
            assert (await api.post("{ me { id } }", by=token))["data"]["me"]["id"] == ann.id
            for name, issuer, code, problem in (
                ("ann", auth.issuer, 1, f"4711 of {auth.issuer} has an account already"),
                ("bob", auth.issuer, 1, "There is nobody active called bob"),
                ("ann", "https://evil.example", 2, "TASKFLOW_TRUSTED_ISSUERS does not name https://evil.example"),
            ):
                ran = await linked(name, issuer, environment)
                assert (ran.exit_code, ran.stderr) == (code, f"taskflow: {problem}\n")


async def linked(name: str, issuer: str, environment: dict[str, str]) -> Result:
    """Run the command in a thread, because it has an event loop of its own."""
    return await asyncio.to_thread(taskflow, "link-identity", name, issuer, "4711", **environment)
