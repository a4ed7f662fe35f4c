"""A real server, a real Chromium without a network, and GraphiQL operated as by a person."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.processes import blocking_child, killed_at_the_end
from tests.support.servers import wait_until

WAIT_SECONDS = 20
WIDTH, HEIGHT = 1280, 800

QUERY = ".graphiql-query-editor"
# The last editor of the section: the variables come before the headers.
HEADERS = ".graphiql-editor-tool .graphiql-editor:last-child"
RESPONSE = ".graphiql-response"


class BrowserMissing(Exception):
    pass


@contextmanager
def taskflow_serve(folder: Path) -> Iterator[str]:
    """Run `taskflow serve` with its own SQLite file, as a user starts it, and yield its URL."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TASKFLOW_") and name not in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY")
    }
    log = folder / "server.log"
    with (
        log.open("w") as written,
        blocking_child(
            [Path(sys.executable).with_name("taskflow"), "serve", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            cwd=folder,
            env=environment,
        ) as server,
    ):
        try:
            assert server.stdout is not None
            # Port 0 means any free port. The greeting names the port.
            line = next((line for line in server.stdout if "GraphiQL" in line), None)
            assert line, f"The server did not start:\n{log.read_text()}"
            port = httpx.URL(line.split()[1]).port
            address = f"http://127.0.0.1:{port}"
            assert wait_until(lambda: _is_healthy(address), WAIT_SECONDS), log.read_text()
            yield address
        finally:
            server.terminate()
            server.communicate(timeout=WAIT_SECONDS)


def _is_healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").is_success
    except httpx.TransportError:
        return False


@contextmanager
def chromium() -> Iterator[Chrome]:
    """Headless Chromium that can reach only 127.0.0.1."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        raise BrowserMissing("Chromium or ChromeDriver is missing. On Debian: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location, driver = (str(program) for program in programs)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(prefix="taskflow-chromium-", ignore_cleanup_errors=True) as profile:
        for argument in (
            "--headless",
            # The sandbox does not run as root, and all the pages are our own.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--proxy-server=direct://",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        service = Service(driver, popen_kw={"start_new_session": True})
        browser = Chrome(options, service)
        with killed_at_the_end(service.process.pid):
            try:
                resize(browser, WIDTH, HEIGHT)
                yield browser
            finally:
                browser.quit()


def resize(browser: Chrome, width: int, height: int) -> None:
    """Give the page itself this size. The size of the window would include an invisible frame."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )


def post(address: str, query: str, token: str | None = None) -> Any:
    """`data` of the answer to another client's request over plain HTTP."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.post(f"{address}/graphql", json={"query": query}, headers=headers).json()
    assert "errors" not in answer, answer
    return answer["data"]


def registration(username: str, full_name: str) -> str:
    return f"""mutation {{
      register(input: {{
        username: "{username}", email: "{username}@example.com", fullName: "{full_name}", password: "correct horse"
      }}) {{ accessToken user {{ username }} errors {{ message }} }}
    }}"""


def register(address: str, username: str, full_name: str) -> str:
    """Register a new user and return the token."""
    token: str = post(address, registration(username, full_name))["register"]["accessToken"]
    return token


def create_task(address: str, token: str, title: str) -> str:
    """Create a task and return its id."""
    data = post(address, f'mutation {{ createTask(input: {{title: "{title}"}}) {{ task {{ id }} }} }}', token)
    task_id: str = data["createTask"]["task"]["id"]
    return task_id


class GraphiQL:
    """The page at /graphql, with nothing stored from an earlier visit."""

    def __init__(self, browser: Chrome, address: str) -> None:
        self.browser = browser
        self.address = address
        # The storage of the browser tab can only be reached from a page of the same origin.
        browser.get(f"{address}/health")
        browser.execute_script("sessionStorage.clear()")
        browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": address, "storageTypes": "all"})
        # Empty the logs of earlier visits.
        self.log("performance")
        self.log("browser")
        self.load()

    def load(self) -> None:
        self.browser.get(f"{self.address}/graphql")
        self.wait_for(lambda: self.read(HEADERS) is not None, "GraphiQL")

    def wait_for(self, condition: Any, what: str) -> Any:
        try:
            return WebDriverWait(self.browser, WAIT_SECONDS, poll_frequency=0.1).until(lambda _: condition())
        except TimeoutException as timeout:
            raise AssertionError(
                f"{what} did not come. The response pane says: {self.read(RESPONSE)}\n"
                f"The console says: {self.log('browser')}"
            ) from timeout

    def read(self, pane: str) -> str | None:
        text: str | None = self.browser.execute_script(
            "return document.querySelector(arguments[0] + ' .CodeMirror')?.CodeMirror.getValue()", pane
        )
        return text

    def write(self, pane: str, text: str) -> None:
        # Not by key presses, because the editor closes brackets and quotes by itself.
        self.browser.execute_script(
            "document.querySelector(arguments[0] + ' .CodeMirror').CodeMirror.setValue(arguments[1])", pane, text
        )

    def session_button(self) -> WebElement:
        """The button "Sign in" or "Sign out"."""
        return self.browser.find_element(By.CLASS_NAME, "session-button")

    def sign_in_by_keyboard(self, username: str, password: str) -> None:
        self.session_button().send_keys(Keys.ENTER)
        self.wait_for(self.dialog().is_displayed, "the dialog")
        ActionChains(self.browser).send_keys(username, Keys.TAB, password, Keys.ENTER).perform()

    def dialog(self) -> WebElement:
        return self.browser.find_element(By.ID, "sign-in")

    def sign_in(self, token: str) -> None:
        self.write(HEADERS, json.dumps({"Authorization": f"Bearer {token}"}, indent=2))

    def run(self, document: str) -> Any:
        """Run a document with a single operation and return the answer."""
        self.start(document)
        return self.answer()

    def start(self, document: str) -> None:
        self.write(QUERY, document)
        # GraphiQL parses the operations of the document a moment later.
        self.wait_for(
            lambda: self.browser.execute_script(
                "return document.querySelector(arguments[0] + ' .CodeMirror').CodeMirror"
                ".documentAST?.loc.source.body === arguments[1]",
                QUERY,
                document,
            ),
            "the operation",
        )
        self.browser.find_element(By.CLASS_NAME, "graphiql-execute-button").click()

    def run_at(self, operation: str) -> Any:
        """Run the operation with this name: put the cursor on it and press Ctrl+Enter. Returns the answer."""
        self.start_at(operation)
        return self.answer()

    def start_at(self, operation: str) -> None:
        self.browser.execute_script(
            """
            const editor = document.querySelector(arguments[0] + ' .CodeMirror').CodeMirror;
            const line = editor.getValue().split("\\n").findIndex((text) => text.includes(arguments[1]));
            editor.focus();
            editor.setCursor(line, 0);
            """,
            QUERY,
            f" {operation} {{",
        )
        ActionChains(self.browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()

    def stop(self) -> None:
        self.browser.find_element(By.CSS_SELECTOR, "[aria-label^='Stop query']").click()

    def answer(self) -> Any:
        """What the response pane shows. A run empties it first, so wait until it shows something."""
        return json.loads(self.wait_for(lambda: self.read(RESPONSE), "an answer"))

    def wait_until_live(self, token: str) -> None:
        """Create tasks until one is shown: nothing else tells when a subscription has begun."""

        def is_live() -> bool:
            create_task(self.address, token, "Are you there?")
            return bool(self.read(RESPONSE))

        self.wait_for(is_live, "the first change")

    def wait_until_shown(self, text: str) -> Any:
        """Wait until the answer contains this text, and return it."""
        self.wait_for(lambda: text in (self.read(RESPONSE) or ""), text)
        return self.answer()

    def log(self, name: str) -> list[dict[str, Any]]:
        """The entries of this Chromium log since the last call."""
        entries: list[dict[str, Any]] = self.browser.get_log(name)  # type: ignore[no-untyped-call]
        return entries

    def requests(self) -> list[str]:
        """The URLs of all requests of the page since the last call, WebSockets included."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            message["params"]["url"] if "url" in message["params"] else message["params"]["request"]["url"]
            for message in messages
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated")
        ]
