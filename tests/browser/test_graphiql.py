"""GraphiQL at /graphql, with all its files served by the server itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count

import httpx
import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from tests.browser.graphiql import (
    HEADERS,
    HEIGHT,
    QUERY,
    RESPONSE,
    WIDTH,
    GraphiQL,
    chromium,
    create_task,
    register,
    registration,
    resize,
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
    # So everything in the other tests works offline.
    with pytest.raises(WebDriverException, match="ERR_NAME_NOT_RESOLVED"):
        browser.get("http://outside.example/")


def test_the_page_sends_requests_only_to_its_server(page: GraphiQL) -> None:
    page.run("{ serverInfo { name } }")
    page.start(WATCH)
    page.answer()

    host = page.address.removeprefix("http://")
    asked = [url for url in page.requests() if not url.startswith("data:")]
    assert f"ws://{host}/graphql" in asked
    assert f"http://{host}/static/graphiql/vendor/graphiql.min.js" in asked
    assert [url for url in asked if httpx.URL(url).netloc.decode() != host] == []
    # No file is missing, nothing violates the Content-Security-Policy, and no error is uncaught.
    assert page.log("browser") == []
    assert page.browser.title == "TaskFlow GQL"


def test_a_query_is_answered(page: GraphiQL) -> None:
    version = httpx.get(page.address).json()["version"]
    assert page.run("{ serverInfo { name version } }") == {
        "data": {"serverInfo": {"name": "TaskFlow GQL", "version": version}}
    }


def test_a_token_in_the_headers_pane_signs_in(page: GraphiQL) -> None:
    assert page.run("{ me { username } }") == {"data": {"me": None}}

    username = f"ada{next(_number)}"
    registered = page.run(registration(username, "Ada"))["data"]["register"]
    token = registered.pop("accessToken")
    assert registered == {"user": {"username": username}, "errors": []}

    page.sign_in(token)
    assert page.run("{ me { username } }") == {"data": {"me": {"username": username}}}


def test_a_subscription_shows_changes_made_by_another_client(page: GraphiQL) -> None:
    token = new_token(page.address)
    page.sign_in(token)
    page.start(WATCH)
    page.wait_until_live(token)

    create_task(page.address, token, "Water the plants")

    assert page.wait_until_shown("Water the plants") == {
        "data": {"taskChanged": {"kind": "CREATED", "task": {"title": "Water the plants"}}}
    }
    assert page.requests().count(page.address.replace("http", "ws") + "/graphql") == 1


def test_a_restarted_subscription_uses_the_current_headers(page: GraphiQL) -> None:
    page.start(WATCH)
    assert page.answer()["errors"][0]["message"] == "Not authenticated"

    token = new_token(page.address)
    page.sign_in(token)
    page.start(WATCH)
    page.wait_until_live(token)
    page.stop()

    page.sign_in("nobody's token")
    page.start(WATCH)
    # The error comes at once, not after half a minute of retries.
    assert page.answer() == {
        "errors": [{"message": "The server refused the token in the Headers pane. Sign in again."}]
    }
    assert page.log("browser") == []


ME = "{ me { username } }"


def storage(page: GraphiQL, name: str) -> str:
    text: str = page.browser.execute_script(f"return JSON.stringify({name})")
    return text


def test_the_button_signs_in_and_a_reload_keeps_the_token(page: GraphiQL) -> None:
    username = f"ada{next(_number)}"
    register(page.address, username, "Ada")
    assert page.session_button().text == "Sign in"
    page.sign_in_by_keyboard(username, "correct horse")
    page.wait_for(lambda: page.session_button().text == "Sign out", "signing in")
    assert not page.dialog().is_displayed()
    assert page.run(ME) == {"data": {"me": {"username": username}}}

    headers = page.read(HEADERS)
    page.load()
    assert page.read(HEADERS) == headers
    assert page.session_button().text == "Sign out"
    assert page.run(ME) == {"data": {"me": {"username": username}}}
    # A new tab inside GraphiQL is signed in too.
    page.browser.find_element(By.CLASS_NAME, "graphiql-tab-add").click()
    page.wait_for(lambda: page.read(QUERY) != ME, "the new tab")
    assert page.run(ME) == {"data": {"me": {"username": username}}}

    page.session_button().click()
    page.wait_for(lambda: page.session_button().text == "Sign in", "signing out")
    assert page.run(ME) == {"data": {"me": None}}
    page.load()
    assert json.loads(page.read(HEADERS) or "") == {"Authorization": "Bearer "}
    assert page.log("browser") == []


def test_a_wrong_password_is_reported_and_leaves_the_headers_unchanged(page: GraphiQL) -> None:
    register(page.address, username := f"ada{next(_number)}", "Ada")
    page.sign_in_by_keyboard(username, "wrong horse")
    problem = page.dialog().find_element(By.CSS_SELECTOR, "[role=alert]")
    page.wait_for(lambda: problem.text == "Incorrect username or password", "the refusal")
    assert json.loads(page.read(HEADERS) or "") == {"Authorization": "Bearer "}

    # The wrong password is selected, so typing replaces it.
    ActionChains(page.browser).send_keys("correct horse", Keys.ENTER).perform()
    page.wait_for(lambda: page.session_button().text == "Sign out", "signing in")
    assert page.run(ME) == {"data": {"me": {"username": username}}}


def test_escape_closes_the_dialog_and_clears_its_fields(page: GraphiQL) -> None:
    page.session_button().click()
    ActionChains(page.browser).send_keys("ada", Keys.TAB, "a secret", Keys.ESCAPE).perform()
    page.wait_for(lambda: not page.dialog().is_displayed(), "closing")
    page.session_button().click()
    values = [field.get_attribute("value") for field in page.dialog().find_elements(By.TAG_NAME, "input")]
    assert values == ["", ""]


def test_the_token_is_stored_only_for_this_browser_tab(page: GraphiQL) -> None:
    page.sign_in("a secret")
    page.write(QUERY, "query Kept { serverInfo { name } }")
    page.wait_for(lambda: "Kept" in storage(page, "localStorage"), "saving")
    assert "a secret" not in storage(page, "localStorage")
    assert "a secret" in storage(page, "sessionStorage")

    page.load()
    assert page.read(QUERY) == "query Kept { serverInfo { name } }"
    assert "a secret" in (page.read(HEADERS) or "")

    first = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")
    try:
        page.load()
        assert page.read(QUERY) == "query Kept { serverInfo { name } }"
        assert json.loads(page.read(HEADERS) or "") == {"Authorization": "Bearer "}
    finally:
        page.browser.close()
        page.browser.switch_to.window(first)


@pytest.fixture
def phone(browser: Chrome, address: str) -> Iterator[GraphiQL]:
    resize(browser, 390, 844)
    yield GraphiQL(browser, address)
    resize(browser, WIDTH, HEIGHT)


def test_every_pane_is_large_enough_on_a_phone(phone: GraphiQL) -> None:
    phone.run("{ serverInfo { name version } }")
    for pane in (QUERY, HEADERS, RESPONSE):
        width, height, is_reached = phone.browser.execute_script(
            """
            const pane = document.querySelector(arguments[0] + ' .CodeMirror');
            pane.scrollIntoView();
            const { left, top, width, height } = pane.getBoundingClientRect();
            return [width, height, pane.contains(document.elementFromPoint(left + width / 2, top + height / 2))];
            """,
            pane,
        )
        assert (width >= 300, height >= 120, is_reached) == (True, True, True), (pane, width, height)
    # Nothing extends beyond the right edge.
    assert phone.browser.execute_script("return document.documentElement.scrollWidth") == 390


def test_the_documentation_is_above_the_panes_on_a_phone(phone: GraphiQL) -> None:
    phone.browser.find_element(By.CSS_SELECTOR, ".graphiql-sidebar button").click()
    plugin = phone.browser.find_element(By.CLASS_NAME, "graphiql-plugin")
    phone.wait_for(lambda: "All Schema Types" in plugin.text, "the documentation")
    assert plugin.size["width"] >= 300
    assert plugin.size["height"] >= 300
    assert phone.run("{ serverInfo { name } }") == {"data": {"serverInfo": {"name": "TaskFlow GQL"}}}


def test_signing_in_works_on_a_phone(phone: GraphiQL) -> None:
    register(phone.address, username := f"ada{next(_number)}", "Ada")
    phone.sign_in_by_keyboard(username, "correct horse")
    phone.wait_for(lambda: phone.session_button().text == "Sign out", "signing in")
    assert phone.run(ME) == {"data": {"me": {"username": username}}}


def test_the_welcome_document_works_as_its_comments_say(page: GraphiQL) -> None:
    document = page.read(QUERY) or ""
    assert document.startswith("# Welcome to TaskFlow GQL.")

    token = page.run_at("Register")["data"]["register"]["accessToken"]
    page.sign_in(token)
    page.start_at("Watch")
    page.wait_until_live(token)
    # The second window of the comments.
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
    # The schema has been loaded by now, and the editor has validated the document against it.
    assert page.browser.find_elements(By.CSS_SELECTOR, f"{QUERY} .CodeMirror-lint-mark") == []
