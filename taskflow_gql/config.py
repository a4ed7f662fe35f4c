"""Settings, read once from the environment and from `.env`."""

from __future__ import annotations

import difflib
import hmac
import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import getaddresses
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from email_validator import EmailNotValidError, validate_email
from limits import parse_many
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

from taskflow_gql.errors import ConfigurationError

_PREFIX = "TASKFLOW_"
# Known variables that are not settings: `create-admin` and this project's tests read them.
_OTHER_VARIABLES = {
    "TASKFLOW_ADMIN_PASSWORD",
    "TASKFLOW_TEST_DATABASE_URL",
    "TASKFLOW_TEST_REDIS_URL",
    "TASKFLOW_FAULT_SECONDS",
    "TASKFLOW_FAULT_SEED",
}

# RFC 7518 requires a key at least as long as the hash of HS256.
MIN_SECRET_BYTES = 32
# The issuer of the tokens of this server.
OWN_ISSUER = "taskflow"

# The groups of rate limits. The tests and `docs/rates.md` say what the generous ones leave of a server.
DEFAULT_RATES: dict[str, str | None] = {
    "auth": "10/minute",
    "refresh": "60/minute",
    "mutations": "30000/minute",
    "queries": "60000/minute",
    "subscriptions": "6000/minute",
}


def _either(name: str) -> AliasChoices:
    """Accept a variable with and without the prefix, as platforms set it without one. The prefixed one wins."""
    return AliasChoices(f"{_PREFIX}{name}", name)


def _require_length(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"must be at least {MIN_SECRET_BYTES} bytes; `openssl rand -hex 32` makes a good one")
    return value


class IssuerClaims(BaseModel):
    """The names of the claims of a trusted issuer's tokens."""

    model_config = ConfigDict(extra="forbid")

    id: str = "sub"
    email: str = "email"
    name: str = "name"
    username: str | None = None


class TrustedIssuer(BaseModel):
    """A server whose tokens are accepted: `docs/keys.md` has examples."""

    model_config = ConfigDict(extra="forbid")

    issuer: str = Field(min_length=1, max_length=255)
    audience: str = Field(min_length=1)
    secret: SecretStr | None = None
    jwks_url: str | None = None
    algorithms: list[
        Literal["EdDSA", "ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
    ] = Field(default=["EdDSA", "ES256", "RS256"], min_length=1)
    claims: IssuerClaims = IssuerClaims()

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value().lstrip().startswith(("-----BEGIN", "ssh-")):
            raise ValueError("is a key of another kind: give its public keys as jwks_url")
        return value if value is None else _require_length(value)

    @field_validator("jwks_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not _is_web_address(value):
            raise ValueError(f"{value!r} is no address; it looks like https://auth.example/api/auth/jwks")
        return value

    @model_validator(mode="after")
    def _check_keys(self) -> TrustedIssuer:
        if (self.secret is None) == (self.jwks_url is None):
            raise ValueError("needs either a secret or a jwks_url")
        return self

    @property
    def is_fetched_safely(self) -> bool:
        """Whether nobody on the way can change the keys."""
        return self.jwks_url is None or self.jwks_url.startswith("https:") or _is_loopback(self.jwks_url)


@dataclass(frozen=True)
class SmtpServer:
    """The SMTP server that takes the mails, from TASKFLOW_SMTP_URL."""

    host: str
    port: int
    username: str | None
    password: str | None = field(repr=False)
    # TLS from the first byte.
    uses_tls: bool
    # STARTTLS: required, or never used, or used if the server offers it (None).
    starttls: bool | None


class Settings(BaseSettings):
    """Every setting of the server. `.env.example` documents them, and a test compares the two."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_file=".env",
        extra="ignore",
        populate_by_name=True,
        env_ignore_empty=True,
        # A refused value can be a secret.
        hide_input_in_errors=True,
    )

    env: Literal["development", "production"] = "development"
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=64)
    # Proxies whose X-Forwarded-For and X-Forwarded-Proto headers are trusted.
    trusted_proxies: Annotated[list[IPv4Network | IPv6Network], NoDecode] = []

    data_dir: Path = Path(".taskflow")
    database_url: str | None = Field(default=None, validation_alias=_either("DATABASE_URL"))
    database_pool_size: int = Field(default=10, ge=1, le=1000)
    database_max_overflow: int = Field(default=20, ge=0, le=1000)
    redis_url: str | None = Field(default=None, validation_alias=_either("REDIS_URL"))

    secret_key: SecretStr | None = Field(default=None, validation_alias=_either("SECRET_KEY"))
    # Secrets that verify tokens, beside the one above, and a folder of keys that sign instead of it.
    other_secret_keys: Annotated[list[SecretStr], NoDecode] = []
    signing_keys: Path | None = None
    trusted_issuers: Annotated[list[TrustedIssuer], NoDecode] = []
    access_token_expire_minutes: int = Field(default=30, ge=1, le=60 * 24 * 365)
    # How long a person stays signed in without using the application.
    refresh_token_expire_days: int = Field(default=30, ge=1, le=36_500)

    # By group. The groups that are not given keep their defaults; None switches a group off.
    rate_limits: Annotated[dict[str, str | None], NoDecode] = DEFAULT_RATES
    # NoDecode: a comma-separated list. By default pydantic-settings expects JSON.
    cors_origins: Annotated[list[str] | None, NoDecode] = None
    # In addition to the headers that the server allows by default.
    cors_headers: Annotated[list[str], NoDecode] = []
    graphiql: bool | None = None
    introspection: bool | None = None

    smtp_url: SecretStr | None = None
    mail_from: str | None = None
    # Templates that replace those of the package with the same file name.
    mail_templates: Path | None = None
    # Address of the front end, the base of the links in mails.
    public_url: str | None = None

    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    event_retention_days: int = Field(default=30, ge=1, le=36_500)
    # How long a repeated mutation gets the answer of the first one.
    mutation_retention_days: int = Field(default=30, ge=1, le=36_500)
    # Events queued for one subscriber. A slower subscriber reads them from the table instead.
    subscription_queue_size: int = Field(default=200, ge=1, le=100_000)
    max_subscriptions_per_connection: int = Field(default=100, ge=1)
    max_subscriptions_per_user: int = Field(default=1000, ge=1)
    max_sockets_per_address: int = Field(default=1000, ge=1)
    max_connections: int = Field(default=10_000, ge=1)
    max_connections_per_address: int = Field(default=2000, ge=1)
    # Time to receive the head of a request, and the same again for its body.
    request_timeout_seconds: int = Field(default=30, ge=1, le=3600)
    # How long a client may read nothing of a response, stream or WebSocket before the connection is closed.
    stream_send_timeout_seconds: int = Field(default=30, ge=1)
    # Unread answers of one WebSocket. All sockets of one person may have twice as many bytes.
    max_unsent_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    max_websocket_message_bytes: int = Field(default=64 * 1024, ge=1024)
    max_query_depth: int = Field(default=15, ge=1, le=100)
    max_query_cost: int = Field(default=100_000, ge=1)
    max_query_aliases: int = Field(default=60, ge=1)
    max_query_tokens: int = Field(default=4000, ge=10)
    max_query_characters: int = Field(default=100_000, ge=100)
    max_query_values: int = Field(default=10_000, ge=10)
    shutdown_timeout_seconds: int = Field(default=10, ge=1, le=600)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _parse_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        networks = []
        for item in (item.strip() for item in value.split(",") if item.strip()):
            try:
                networks.append(ip_network(item))
            except ValueError as error:
                raise ValueError(
                    f"{item!r} is no address or network; they look like 127.0.0.1 or 10.0.0.0/8"
                ) from error
        return networks

    @field_validator("trusted_issuers", mode="before")
    @classmethod
    def _parse_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"is no JSON ({error}); docs/keys.md has examples") from error

    @field_validator("rate_limits", mode="before")
    @classmethod
    def _parse_rates(cls, value: object) -> object:
        # NoDecode: pydantic-settings would raise an error of its own for text that is no JSON.
        given = _json(value) if isinstance(value, str) else value
        if not isinstance(given, dict):
            raise ValueError('must be a JSON object such as {"auth": "10/minute"}')
        for group in given:
            if group not in DEFAULT_RATES:
                raise ValueError(f"{group!r} is no group; the groups are {', '.join(DEFAULT_RATES)}")
        return DEFAULT_RATES | {group: _checked_rate(rate) for group, rate in given.items()}

    @field_validator("cors_origins", "cors_headers", "other_secret_keys", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return [item.strip() for item in value.split(",") if item.strip()]
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        origins = [origin.rstrip("/") for origin in value]
        for origin in origins:
            if not _is_origin(origin):
                raise ValueError(
                    f"{origin!r} is no origin; they look like https://app.example or http://localhost:5173"
                )
        return origins

    @field_validator("secret_key")
    @classmethod
    def _check_length(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is None else _require_length(value)

    @field_validator("other_secret_keys")
    @classmethod
    def _check_lengths(cls, value: list[SecretStr]) -> list[SecretStr]:
        return [_require_length(secret) for secret in value]

    @field_validator("trusted_issuers")
    @classmethod
    def _check_issuers(cls, value: list[TrustedIssuer]) -> list[TrustedIssuer]:
        names = [trusted.issuer for trusted in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is there twice")
            if name == OWN_ISSUER:
                raise ValueError(f"{name!r} is the issuer of this server's own tokens")
        return value

    @field_validator("smtp_url")
    @classmethod
    def _check_smtp_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _smtp_server(value.get_secret_value())
        return value

    @field_validator("mail_from")
    @classmethod
    def _check_mail_from(cls, value: str | None) -> str | None:
        if value is not None and not _is_sender(value):
            raise ValueError("is no sender; they look like TaskFlow <noreply@app.example> or noreply@app.example")
        return value

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value is not None and not _is_base_url(value):
            raise ValueError("is no base of links; they look like https://app.example or https://app.example/tasks")
        return value and value.rstrip("/")

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        missing = []
        if self.is_production:
            if self.secret_key is None:
                missing.append("SECRET_KEY")
            if self.database_url is None or self.is_sqlite:
                missing.append("DATABASE_URL (a postgresql:// URL)")
            missing += [
                f"https for the keys of {trusted.issuer} in TASKFLOW_TRUSTED_ISSUERS"
                for trusted in self.trusted_issuers
                if not trusted.is_fetched_safely
            ]
        if self.workers > 1:
            if self.is_sqlite and not self.is_production:
                missing.append("DATABASE_URL (more than one worker needs PostgreSQL)")
            if self.redis_url is None:
                missing.append("REDIS_URL (more than one worker needs Redis)")
        if missing:
            what = "production" if self.is_production else f"TASKFLOW_WORKERS={self.workers}"
            raise ValueError(f"{what} needs {', '.join(missing)}")
        if self.smtp_url is not None:
            needed = {"TASKFLOW_MAIL_FROM": self.mail_from, "TASKFLOW_PUBLIC_URL": self.public_url}
            if missing := [name for name, value in needed.items() if value is None]:
                raise ValueError(f"TASKFLOW_SMTP_URL needs {', '.join(missing)}")
        return self

    @property
    def is_production(self) -> bool:
        return self.env == "production"

    @property
    def is_sqlite(self) -> bool:
        return self.database_url is None or self.database_url.startswith("sqlite")

    @property
    def is_embedded(self) -> bool:
        """Whether no database is configured, so that the server runs as one process on its own SQLite file."""
        return self.database_url is None

    @property
    def shows_graphiql(self) -> bool:
        return self.graphiql if self.graphiql is not None else not self.is_production

    @property
    def allowed_origins(self) -> list[str]:
        """Origins whose pages may call the server from a browser; `*` allows all."""
        if self.cors_origins is not None:
            return self.cors_origins
        return [] if self.is_production else ["http://localhost:3000", "http://localhost:5173"]

    @property
    def allows_introspection(self) -> bool:
        return self.introspection if self.introspection is not None else not self.is_production

    @property
    def sends_mail(self) -> bool:
        """Whether mail can be posted: to an SMTP server or, in development without one, to the log."""
        return self.smtp_url is not None or not self.is_production

    @property
    def smtp_server(self) -> SmtpServer | None:
        return None if self.smtp_url is None else _smtp_server(self.smtp_url.get_secret_value())

    @property
    def links_base(self) -> str:
        """The base of the links in mails, without a slash at its end."""
        return self.public_url or "http://localhost:3000"

    @cached_property
    def signing_key(self) -> str:
        """The configured secret, or else the one in the data folder, which is created on first use."""
        if self.secret_key is not None:
            return self.secret_key.get_secret_value()
        return _secret_kept_in(make_data_dir(self.data_dir) / "secret")

    def key_for(self, purpose: bytes) -> bytes:
        """A key for one purpose, derived from the signing key."""
        return hmac.digest(self.signing_key.encode(), purpose, "sha256")


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _checked_rate(rate: object) -> str | None:
    """None for a group that is switched off."""
    if rate is None or (rate == 0 and not isinstance(rate, str)):
        return None
    if isinstance(rate, str):
        with suppress(ValueError):
            (parsed,) = parse_many(rate)
            if parsed.amount > 0:
                return rate
    raise ValueError(f"{rate!r} is no rate; they look like 10/minute or 100 per 2 hours, and 0 switches a group off")


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_host = parts.hostname is not None and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    rest = parts.path or parts.query or parts.fragment or parts.username
    return text == "*" or bool(parts.scheme and has_host and not rest)


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    is_plain = text.isprintable() and " " not in text and not parts.username and not parts.fragment
    return parts.scheme in ("http", "https") and has_host and is_plain


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _smtp_server(url: str) -> SmtpServer:
    """Raises ValueError with a message that repeats nothing of the URL, which has the password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _no_smtp_url() from None
    uses_tls = parts.scheme == "smtps"
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.path not in ("", "/") or parts.fragment:
        raise _no_smtp_url()
    starttls = _starttls(parts)
    return SmtpServer(
        host=parts.hostname,
        port=port or (465 if uses_tls else 587 if starttls else 25),
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        uses_tls=uses_tls,
        starttls=starttls,
    )


def _no_smtp_url() -> ValueError:
    return ValueError(
        "is no SMTP URL; they look like smtp://user:password@smtp.example:587?starttls=true or "
        "smtps://user:password@smtp.example. In the user and the password write % before the hexadecimal code of "
        "each character other than letters, digits, - and _"
    )


def _starttls(parts: SplitResult) -> bool | None:
    query = parse_qs(parts.query, keep_blank_values=True)
    given = query.pop("starttls", None)
    if query or given not in (None, ["true"], ["false"]):
        raise ValueError("has the parameter starttls only, which is true or false")
    if parts.scheme == "smtps":
        if given == ["true"]:
            raise ValueError("smtps:// uses TLS from the start: remove starttls, or write smtp://")
        return False
    return None if given is None else given == ["true"]


def _is_sender(text: str) -> bool:
    addresses = getaddresses([text])
    if len(addresses) != 1 or not text.isprintable():
        return False
    try:
        validate_email(addresses[0][1], check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return False
    return True


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_host = parts.hostname is not None and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    rest = parts.query or parts.fragment or parts.username
    return parts.scheme in ("http", "https") and has_host and not rest and text.isprintable() and " " not in text


def make_data_dir(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot make the data folder {folder}: {error.strerror}. Give rights on it, or set TASKFLOW_DATA_DIR"
        ) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"No right to read and write the data folder {folder}. Give rights on it, or set TASKFLOW_DATA_DIR"
        )
    return folder


def _secret_kept_in(path: Path) -> str:
    if not path.exists():
        # Written to a temporary file with mode 0600, then linked to its name. If two processes start together, only one
        # link succeeds, and neither can read a partial secret.
        aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(48))
            with suppress(FileExistsError):
                os.link(aside, path)
            aside.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"Cannot write {path}: {error.strerror}. Set SECRET_KEY, or give rights"
            ) from error
    try:
        secret = path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}. Set SECRET_KEY, or give rights") from error
    except UnicodeDecodeError:
        secret = ""
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ConfigurationError(f"The secret in {path} is damaged. Delete the file; everybody signs in again")
    return secret


def load_settings() -> Settings:
    """Settings from the environment. Raises ConfigurationError with a one-line message that names every bad setting."""
    try:
        return Settings()
    except ValidationError as error:
        problems: list[str] = []
        for problem in error.errors(include_url=False, include_input=False):
            message = problem["msg"].removeprefix("Value error, ")
            # pydantic gives the variable's name for a setting with two names, otherwise the field's name.
            name = "".join(str(part) for part in problem["loc"][:1]).upper()
            # In a setting of several values, where: `0.audience`.
            if place := ".".join(str(part) for part in problem["loc"][1:]):
                message = f"{place}: {message}"
            if name and not name.startswith(_PREFIX):
                name = f"{_PREFIX}{name}"
            problems.append(f"{name}: {message}" if name else message)
        # A missing setting may be present under a misspelt name.
        problems.extend(unknown_variables())
        raise ConfigurationError("Bad settings: " + "; ".join(problems)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read the settings in the file .env: {error}") from error


def unknown_variables() -> list[str]:
    """A message for each variable in the environment or `.env` that has the prefix but is not a setting."""
    settings = [name.upper() for name in Settings.model_fields]
    given = {*EnvSettingsSource(Settings).env_vars, *DotEnvSettingsSource(Settings).env_vars}
    unknown = {name.upper() for name in given}.difference(_OTHER_VARIABLES, (_PREFIX + name for name in settings))
    return [_unknown_variable(name, settings) for name in sorted(unknown) if name.startswith(_PREFIX)]


def _unknown_variable(variable: str, settings: list[str]) -> str:
    # Compared without the prefix, which would make all names similar.
    nearest = difflib.get_close_matches(variable.removeprefix(_PREFIX), settings, n=1)
    hint = f"did you mean {_PREFIX}{nearest[0]}?" if nearest else ".env.example lists all settings"
    return f"{variable} is not a setting: {hint}"
