"""What stands in a line of the log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from taskflow_gql.telemetry.logs import configure_logging
from tests.support.serving import make_settings

log = logging.getLogger("tests.log")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Out of reach of `configure_logging`, which closes what it finds.
    root.handlers = []
    yield
    root.handlers, root.level = handlers, level


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_json_line_has_time_level_logger_message_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="json"))
    before = datetime.now(UTC)
    log.warning("%d tasks of\n“%s”", 3, "Äda", extra={"error_id": UUID(int=1), "user": {"id": 7}})

    (line,) = json_lines(capsys)
    assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
    assert line == {
        "level": "WARNING",
        "logger": "tests.log",
        "message": "3 tasks of\n“Äda”",
        "error_id": "00000000-0000-0000-0000-000000000001",
        "user": {"id": 7},
    }


def test_a_json_line_has_the_exception_with_its_stack(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="json"))
    try:
        raise LookupError("nothing there")
    except LookupError:
        log.exception("It failed")

    (line,) = json_lines(capsys)
    assert line["message"] == "It failed"
    assert line["level"] == "ERROR"
    stack = line["exception"].splitlines()
    assert stack[0] == "Traceback (most recent call last):"
    assert "test_logs.py" in stack[1]
    assert stack[-1] == "LookupError: nothing there"


def test_a_json_line_leaves_out_what_uvicorn_adds_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="json"))
    log.info("Started", extra={"color_message": "\x1b[36mStarted\x1b[0m"})
    (line,) = json_lines(capsys)
    assert sorted(line) == ["level", "logger", "message", "time"]


def test_the_console_has_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="console"))
    log.info("Hello %s", "Äda", extra={"error_id": 1})
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO tests\.log: Hello Äda\n", capsys.readouterr().err)


def test_the_console_shows_an_exception_below_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="console"))
    log.error("It failed", exc_info=LookupError("nothing there"))
    line, *_, last = capsys.readouterr().err.splitlines()
    assert line.endswith(" ERROR tests.log: It failed")
    assert last == "LookupError: nothing there"


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_level="WARNING"))
    log.info("Unheard")
    log.warning("Heard")
    assert [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()] == ["Heard"]


def test_configuring_twice_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="json"))
    configure_logging(make_settings(log_format="json"))
    log.info("Once")
    assert [line["message"] for line in json_lines(capsys)] == ["Once"]


def test_strawberry_s_own_lines_of_errors_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings())
    logging.getLogger("strawberry.execution").error("Said again by ourselves")
    assert capsys.readouterr().err == ""
