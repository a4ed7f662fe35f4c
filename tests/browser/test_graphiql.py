"""GraphiQL at /graphql, from files that the server has itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count

import httpx
import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.browser.graphiql import (
    HEADERS,
    QUERY,
    GraphiQL,
    chromium,
    create_task,
    register,
    registration,
    taskflow_serve,
)

pytestmark = pytest.mark.browser

WATCH = "subscription { taskChanged { kind task { title } } }"

_number = count(1)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with taskflow_serve(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Chrome, address: str) -> GraphiQL:
    return GraphiQL(browser, address)


def new_token(address: str) -> str:
    return register(address, f"ada{next(_number)}", "Ada")


def test_the_browser_has_no_network(browser: Chrome) -> None:
    # All that the other tests show, they show offline.
    with pytest.raises(WebDriverException, match="ERR_NAME_NOT_RESOLVED"):
        browser.get("http://outside.example/")


def test_the_page_asks_nobody_but_its_server(page: GraphiQL) -> None:
    page.run("{ serverInfo { name } }")
    page.start(WATCH)
    page.answer()

    host = page.address.removeprefix("http://")
    asked = [url for url in page.requests() if not url.startswith("data:")]
    assert f"ws://{host}/graphql" in asked
    assert f"http://{host}/static/graphiql/vendor/graphiql.min.js" in asked
    assert [url for url in asked if httpx.URL(url).netloc.decode() != host] == []
    # No file is missing, nothing breaks the page's Content-Security-Policy, and no error goes uncaught.
    assert page.log("browser") == []
    assert page.browser.title == "TaskFlow GQL"


def test_a_query_is_answered(page: GraphiQL) -> None:
    version = httpx.get(page.address).json()["version"]
    assert page.run("{ serverInfo { name version } }") == {
        "data": {"serverInfo": {"name": "TaskFlow GQL", "version": version}}
    }


def test_the_headers_pane_signs_in(page: GraphiQL) -> None:
    assert page.run("{ me { username } }") == {"data": {"me": None}}

    username = f"ada{next(_number)}"
    registered = page.run(registration(username, "Ada"))["data"]["register"]
    token = registered.pop("accessToken")
    assert registered == {"user": {"username": username}, "errors": []}

    page.sign_in(token)
    assert page.run("{ me { username } }") == {"data": {"me": {"username": username}}}


def test_a_subscription_shows_what_another_client_does(page: GraphiQL) -> None:
    token = new_token(page.address)
    page.sign_in(token)
    page.start(WATCH)
    page.wait_until_live(token)

    create_task(page.address, token, "Water the plants")

    assert page.wait_until_shown("Water the plants") == {
        "data": {"taskChanged": {"kind": "CREATED", "task": {"title": "Water the plants"}}}
    }
    assert page.requests().count(page.address.replace("http", "ws") + "/graphql") == 1


def test_a_subscription_started_again_takes_the_headers_of_now(page: GraphiQL) -> None:
    page.start(WATCH)
    assert page.answer()["errors"][0]["message"] == "Not authenticated"

    token = new_token(page.address)
    page.sign_in(token)
    page.start(WATCH)
    page.wait_until_live(token)
    page.stop()

    page.sign_in("nobody's token")
    page.start(WATCH)
    # At once: nobody waits half a minute for retries.
    assert page.answer() == {
        "errors": [{"message": "The server refused the token in the Headers pane. Login gets a new one."}]
    }
    assert page.log("browser") == []


def test_the_page_keeps_its_tabs_but_no_token(page: GraphiQL) -> None:
    page.sign_in("a secret")
    page.write(QUERY, "query Kept { serverInfo { name } }")
    page.wait_for(lambda: "Kept" in page.browser.execute_script("return JSON.stringify(localStorage)"), "saving")
    assert "a secret" not in page.browser.execute_script("return JSON.stringify(localStorage)")

    page.load()

    assert page.read(QUERY) == "query Kept { serverInfo { name } }"
    assert json.loads(page.read(HEADERS) or "") == {"Authorization": "Bearer "}


def test_the_welcome_document_works_as_its_comments_say(page: GraphiQL) -> None:
    document = page.read(QUERY) or ""
    assert document.startswith("# Welcome to TaskFlow GQL.")

    token = page.run_at("Register")["data"]["register"]["accessToken"]
    page.sign_in(token)
    page.start_at("Watch")
    page.wait_until_live(token)
    # The second window.
    answer = httpx.post(
        f"{page.address}/graphql",
        json={"query": document, "operationName": "CreateTask"},
        headers={"Authorization": f"Bearer {token}"},
    ).json()
    assert answer["data"]["createTask"]["errors"] == []
    change = page.wait_until_shown("Try the live stream")["data"]["taskChanged"]
    assert change["task"] == {"title": "Try the live stream", "status": "PENDING", "priority": "HIGH"}
    assert change["actor"] == {"username": "ada"}
    page.stop()

    page.sign_in(page.run_at("Login")["data"]["login"]["accessToken"])
    assert page.run_at("Me")["data"]["me"] == {"username": "ada", "fullName": "Ada Lovelace", "role": "MEMBER"}
    # By now the schema is here, and the editor has held the document against it.
    assert page.browser.find_elements(By.CSS_SELECTOR, f"{QUERY} .CodeMirror-lint-mark") == []
