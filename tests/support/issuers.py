"""A sign-in server of somebody else: it publishes its keys over HTTP, and signs tokens."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import jwt

from taskflow_gql.config import Settings, TrustedIssuer
from taskflow_gql.security.keys import Key, PrivateKey, jwks_of, make_private_key

AUDIENCE = "https://tasks.example"


class SignInServer:
    """Listens on a port of its own while its block runs. `answer` is sent to each request for the keys."""

    issuer = "https://app.example"

    def __init__(self, *kids: str, algorithm: str = "EdDSA") -> None:
        self.algorithm = algorithm
        self.keys: dict[str, PrivateKey] = {kid: make_private_key(algorithm) for kid in kids or ("first",)}
        self.fetches = 0
        self.status = 200
        # Instead of the keys.
        self.body: bytes | None = None
        self.location: str | None = None
        # Answers wait for it.
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/api/auth/jwks"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.may_answer.set()
        self.stop()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches += 1
                issuer.may_answer.wait(30)
                body = issuer.jwks() if issuer.body is None else issuer.body
                self.send_response(issuer.status)
                if issuer.location is not None:
                    self.send_header("Location", issuer.location)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        return Handler

    def jwks(self) -> bytes:
        keys = [Key(kid, self.algorithm, key.public_key()) for kid, key in self.keys.items()]
        return json.dumps(jwks_of(keys)).encode()

    def add_key(self, kid: str) -> None:
        self.keys[kid] = make_private_key(self.algorithm)

    def token(self, subject: str = "4711", *, kid: str | None = None, **claims: Any) -> str:
        """A token of this person. A claim set to None is left out. The last key signs, or the one named."""
        kid = kid or list(self.keys)[-1]
        payload = person_claims(subject) | {"iss": self.issuer, "aud": AUDIENCE} | claims
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, self.keys[kid], algorithm=self.algorithm, headers={"kid": kid})

    @property
    def trusted(self) -> TrustedIssuer:
        return TrustedIssuer(issuer=self.issuer, audience=AUDIENCE, jwks_url=self.url)


def person_claims(subject: str) -> dict[str, Any]:
    now = int(time.time())
    return {
        "sub": subject,
        "email": f"{subject}@app.example",
        "name": f"Person {subject}",
        "iat": now,
        "exp": now + 900,
    }


def trusting(settings: Settings, *issuers: TrustedIssuer) -> Settings:
    return settings.model_copy(update={"trusted_issuers": list(issuers)})
