"""The ASGI application: creates the parts of the server, manages their lifespan and defines the routes."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from types import FrameType

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from taskflow_gql import __version__, clock
from taskflow_gql.api.authentication import issuers_of
from taskflow_gql.api.context import Context, Parts
from taskflow_gql.api.schema import make_schema
from taskflow_gql.api.server import SERVER_NAME
from taskflow_gql.config import Settings, load_settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.units import Database
from taskflow_gql.execution.strawberry import BatchingExecutor, StrawberryExecutor
from taskflow_gql.security.keys import jwks_of, read_keys
from taskflow_gql.security.passwords import PasswordHasher
from taskflow_gql.security.rates import RateLimits
from taskflow_gql.security.tokens import TokenSigner
from taskflow_gql.services.password_resets import expire_reset_tokens
from taskflow_gql.services.positions import expire_events
from taskflow_gql.services.receipts import expire_receipts
from taskflow_gql.services.sessions import expire_refresh_tokens, expire_sessions
from taskflow_gql.stream.bus import Bus, make_bus
from taskflow_gql.stream.collector import Collector
from taskflow_gql.stream.fanout import Fanout
from taskflow_gql.stream.mail import Connect, Mailer, over_smtp, to_log
from taskflow_gql.stream.mail_templates import MailTemplates
from taskflow_gql.stream.password_resets import PasswordResets
from taskflow_gql.stream.relay import Relay
from taskflow_gql.stream.retention import Kept, Retention
from taskflow_gql.stream.revocations import SessionWatch
from taskflow_gql.telemetry.logs import configure_logging
from taskflow_gql.transport.http import GraphQLView
from taskflow_gql.transport.middleware import CLIENT_HEADERS, SERVER_HEADERS, Cors, RevalidatedFiles, Shortcut

log = logging.getLogger(__name__)

_READY_TIMEOUT_SECONDS = 3
_EXPIRED_SESSION_DAYS = 1
# How long others may keep our public keys. docs/keys.md says to wait as long before a new key signs.
_JWKS_SECONDS = 300


def create_app(
    settings: Settings | None = None,
    *,
    executor: type[StrawberryExecutor] = BatchingExecutor,
    collector: Collector | None = None,
) -> Starlette:
    """The server as an ASGI application. It opens no connections before its lifespan starts."""
    settings = settings or load_settings()
    configure_logging(settings)
    bus = make_bus(settings.redis_url)
    database = Database(create_engine(settings))
    relay = Relay(database, bus)
    database.observe(relay)
    mailer = Mailer(database, mail_connection(settings))
    database.observe(mailer)
    resets = PasswordResets(database, links_base=settings.links_base)
    database.observe(resets)
    fanout = Fanout(
        database,
        bus,
        queue_size=settings.subscription_queue_size,
        max_per_user=settings.max_subscriptions_per_user,
    )
    watch = SessionWatch(database, fanout)
    retention = Retention(
        database,
        Kept("events", settings.event_retention_days, expire_events),
        Kept("receipts", settings.mutation_retention_days, expire_receipts),
        Kept("sessions", _EXPIRED_SESSION_DAYS, expire_sessions),
        Kept("replaced refresh tokens", settings.refresh_token_expire_days, expire_refresh_tokens),
        Kept("links for new passwords", _EXPIRED_SESSION_DAYS, expire_reset_tokens),
    )
    rates = RateLimits(settings.rate_limits, redis_url=settings.redis_url, key=settings.key_for(b"rates"))
    parts = Parts(
        settings=settings,
        database=database,
        relay=relay,
        fanout=fanout,
        passwords=PasswordHasher(),
        tokens=TokenSigner(
            settings.signing_key,
            timedelta(minutes=settings.access_token_expire_minutes),
            read_keys(settings.signing_keys) if settings.signing_keys is not None else [],
            other_secrets=[secret.get_secret_value() for secret in settings.other_secret_keys],
        ),
        issuers=issuers_of(settings),
        rates=rates,
    )
    jwks = jwks_of(parts.tokens.keys)
    view = GraphQLView(make_schema(settings, executor), settings, partial(Context, parts))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            await bus.start()
            await fanout.start()
            for part in (relay, watch, retention, mailer, resets):
                part.start()
            if collector is not None:
                collector.start()
            with draining_on_signals(fanout):
                yield
        finally:
            if collector is not None:
                await collector.close()
            await resets.close()
            await mailer.close()
            await retention.close()
            await watch.close()
            await relay.close()
            await fanout.close()
            await bus.close()
            await rates.close()
            parts.passwords.close()
            await database.close()

    async def ready(_: Request) -> JSONResponse:
        return await _ready(database, bus)

    async def own_keys(_: Request) -> JSONResponse:
        return JSONResponse(jwks, headers={"Cache-Control": f"public, max-age={_JWKS_SECONDS}"})

    routes: list[BaseRoute] = [
        Route("/", root),
        Route("/.well-known/jwks.json", own_keys),
        Route("/health", health),
        Route("/health-check", health),
        Route("/ready", ready),
        # The shortcut below serves these two. They are listed for tools that inspect the routes.
        Route("/graphql", view),
        WebSocketRoute("/graphql", view),
        Route("/graphql/", without_slash, methods=["GET", "POST"]),
    ]
    if settings.shows_graphiql:
        routes.append(Mount("/static", RevalidatedFiles(packages=[("taskflow_gql", "static")])))
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(
                Cors,
                allow_origins=settings.allowed_origins,
                allow_credentials=True,
                allow_methods=["GET", "POST", "OPTIONS"],
                allow_headers=[*CLIENT_HEADERS, *settings.cors_headers],
                expose_headers=SERVER_HEADERS,
            ),
            Middleware(Shortcut, path="/graphql", to=view),
        ],
        lifespan=lifespan,
    )
    # Starlette's redirects repeat the Host header of the client.
    app.router.redirect_slashes = False
    app.state.parts = parts
    return app


def create_server() -> Starlette:
    """`create_app` for a process that only serves; uvicorn calls it in each worker."""
    return create_app(collector=Collector())


def mail_connection(settings: Settings) -> Connect | None:
    """How mail is sent; None if it cannot be. Raises ConfigurationError if a template is broken."""
    templates = MailTemplates(settings.mail_templates, public_url=settings.links_base)
    if settings.smtp_server is not None and settings.mail_from is not None:
        return over_smtp(settings.smtp_server, settings.mail_from, templates)
    return to_log(templates) if settings.sends_mail else None


@contextmanager
def draining_on_signals(fanout: Fanout) -> Iterator[None]:
    """While the block runs, make SIGINT and SIGTERM complete the open streams and then call the previous handlers.

    uvicorn waits for responses to end, and streams would not end by themselves. Its handlers are the previous ones.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def drain(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(fanout.drain)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in before:
        signal.signal(number, drain)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def without_slash(request: Request) -> RedirectResponse:
    """Redirect to `/graphql` with a relative URL. GraphiQL's page loads its files relative to `/graphql`."""
    query = request.url.query
    return RedirectResponse(f"../graphql?{query}" if query else "../graphql")


async def root(_: Request) -> JSONResponse:
    return JSONResponse({"message": SERVER_NAME, "version": __version__})


async def health(_: Request) -> JSONResponse:
    return JSONResponse({"status": "healthy", "time": clock.now().isoformat()})


async def _ready(database: Database, bus: Bus) -> JSONResponse:
    failing = []
    try:
        async with asyncio.timeout(_READY_TIMEOUT_SECONDS), database.read() as session:
            # Also the newest table, so that a server is not ready before its migration.
            await session.execute(
                text("SELECT 1 FROM stream_state WHERE true OR EXISTS (SELECT 1 FROM password_reset_tokens)")
            )
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        log.warning("Not ready: the database cannot be used: %s", error)
        failing.append("database")
    try:
        await bus.ping()
    except (RedisError, OSError, TimeoutError) as error:
        log.warning("Not ready: Redis cannot be reached: %s", error)
        failing.append("redis")
    if failing:
        return JSONResponse({"status": "unavailable", "failing": failing}, 503)
    return JSONResponse({"status": "ready"})
