"""The templates of mails: those of the package, and those of the operator, which replace them by file name.

Each mail has two, `NAME.txt` and `NAME.html`. The text begins with the line `Subject: …`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateSyntaxError, select_autoescape

from taskflow_gql.errors import ConfigurationError
from taskflow_gql.services.mail import VALUES_BY_TEMPLATE, one_line

_PACKAGED = Path(__file__).parent.parent / "mail_templates"
_SUBJECT = "Subject:"


class RenderedMail(NamedTuple):
    subject: str
    text: str
    html: str


class MailTemplates:
    """Raises ConfigurationError if a template cannot be rendered: the server finds out when it starts."""

    def __init__(self, folder: Path | None, *, public_url: str) -> None:
        if folder is not None and not folder.is_dir():
            raise ConfigurationError(f"TASKFLOW_MAIL_TEMPLATES: {folder} is no folder")
        self._folders = [_PACKAGED] if folder is None else [folder, _PACKAGED]
        self._environment = Environment(
            loader=FileSystemLoader(self._folders),
            autoescape=select_autoescape(["html"], default=False),
            # A misspelt name is an error, not an empty place in the mail.
            undefined=StrictUndefined,
            trim_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.globals["public_url"] = public_url
        for template, names in VALUES_BY_TEMPLATE.items():
            self._check(template, {name: name for name in (*names, "valid_for")})

    def render(self, template: str, values: Mapping[str, str]) -> RenderedMail:
        subject, text = self._text(template, values)
        return RenderedMail(subject, text, self._html(template, values))

    def _text(self, template: str, values: Mapping[str, str]) -> tuple[str, str]:
        """The subject and the text. Values have no line breaks, so none of them can end the first line."""
        rendered = self._environment.get_template(f"{template}.txt").render(values)
        first, _, text = rendered.partition("\n")
        if not first.startswith(_SUBJECT):
            raise ValueError(f"its first line must begin with {_SUBJECT}")
        return one_line(first.removeprefix(_SUBJECT)), text.lstrip("\n")

    def _html(self, template: str, values: Mapping[str, str]) -> str:
        return self._environment.get_template(f"{template}.html").render(values)

    def _path(self, name: str) -> str:
        return str(next(folder / name for folder in self._folders if (folder / name).exists()))

    def _check(self, template: str, values: Mapping[str, str]) -> None:
        for name, render in ((f"{template}.txt", self._text), (f"{template}.html", self._html)):
            try:
                render(template, values)
            except TemplateSyntaxError as error:
                # It can be in a file that this one includes.
                raise _broken(f"{error.filename or name}, line {error.lineno}", error) from error
            except Exception as error:
                # A template can raise anything.
                raise _broken(self._path(name), error) from error


def _broken(place: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"The mail template {place} cannot be used: {one_line(str(error))}")
