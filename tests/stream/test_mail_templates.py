"""Templates of mails: those of the package, the operator's, and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskflow_gql.errors import ConfigurationError
from taskflow_gql.services.mail import VALUES_BY_TEMPLATE
from taskflow_gql.stream.mail_templates import MailTemplates

PACKAGED = Path(__file__).parents[2] / "taskflow_gql/mail_templates"
LINK = "https://app.example/reset?token=abc&for=ann"
URL = "https://app.example"


def values_of(template: str) -> dict[str, str]:
    return {name: f"<{name}>" for name in (*VALUES_BY_TEMPLATE[template], "valid_for")}


def test_every_template_has_two_files_and_no_file_is_unused() -> None:
    named = {f"{name}.{kind}" for name in VALUES_BY_TEMPLATE for kind in ("txt", "html")}
    assert {path.name for path in PACKAGED.iterdir()} == named | {"layout.html", "button.html"}


@pytest.mark.parametrize("template", VALUES_BY_TEMPLATE)
def test_every_value_is_in_text_and_html_escaped_in_the_latter(template: str) -> None:
    subject, text, html = MailTemplates(None, public_url=URL).render(template, values_of(template))
    assert subject
    assert "\n" not in subject
    for name in VALUES_BY_TEMPLATE[template]:
        assert f"<{name}>" in text
        assert f"&lt;{name}&gt;" in html
        assert f"<{name}>" not in html
    assert text.endswith(".\n") or text.endswith(f"{URL}\n")
    assert [line for line in text.splitlines() if len(line) > 120] == []
    assert html.startswith("<!doctype html>")


def test_the_operators_files_replace_those_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "password_reset.txt").write_text(
        "Subject: Neues Passwort für {{ name }}\n\nHallo {{ name }}: {{ link }}\n"
    )
    (tmp_path / "layout.html").write_text("<html>ACME {% block content %}{% endblock %}</html>")
    templates = MailTemplates(tmp_path, public_url=URL)
    rendered = templates.render("password_reset", {"name": "Zoë", "link": LINK, "valid_for": "60 minutes"})
    assert (rendered.subject, rendered.text) == ("Neues Passwort für Zoë", f"Hallo Zoë: {LINK}\n")
    assert rendered.html.startswith("<html>ACME ")
    assert "https://app.example/reset?token=abc&amp;for=ann" in rendered.html
    assert templates.render("invitation", values_of("invitation")).html.startswith("<html>ACME ")


@pytest.mark.parametrize(
    ("name", "source", "place", "problem"),
    [
        ("password_reset.txt", "Subject: x\n\n{{ name }", "password_reset.txt, line 3", "unexpected '}'"),
        ("password_reset.txt", "Subject: x\n\n{{ nmae }}", "password_reset.txt", "'nmae' is undefined"),
        ("invitation.html", "{{ name }}", "invitation.html", "'name' is undefined"),
        ("invitation.html", '{% include "gone.html" %}', "invitation.html", "gone.html"),
        ("confirm_email.txt", "Confirm\n\n{{ link }}", "confirm_email.txt", "its first line must begin with Subject:"),
        ("confirm_email.txt", "", "confirm_email.txt", "its first line must begin with Subject:"),
        ("session_ended.html", "{{ 1 // 0 }}", "session_ended.html", "integer division or modulo by zero"),
        ("layout.html", "{% block content %}", "layout.html, line 1", "Unexpected end of template"),
    ],
)
def test_a_broken_template_is_refused_with_its_file(
    tmp_path: Path, name: str, source: str, place: str, problem: str
) -> None:
    (tmp_path / name).write_text(source)
    with pytest.raises(ConfigurationError) as refused:
        MailTemplates(tmp_path, public_url=URL)
    message = str(refused.value)
    assert message.startswith(f"The mail template {tmp_path}/{place} cannot be used: ")
    assert problem in message
    assert "\n" not in message


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "invitation.txt").write_bytes("Subject: Grüße\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"The mail template .*invitation.txt cannot be used: 'utf-8' codec"):
        MailTemplates(tmp_path, public_url=URL)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        MailTemplates(tmp_path / "gone", public_url=URL)
    assert str(refused.value) == f"TASKFLOW_MAIL_TEMPLATES: {tmp_path}/gone is no folder"
