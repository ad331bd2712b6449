"""A real browser for the tests of the page."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser import CHROMIUM, chromium, new_page
from tests.conftest import ServerProcess


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium): the page is not tested")
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open pages; none leaves a message in its console, but for answers that are errors."""
    pages, messages = [], []

    def opened(*arguments: Any, **options: Any) -> Any:
        page = new_page(browser, *arguments, **options)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.unroute_all(behavior="ignoreErrors")
        page.context.close()
    assert [text for text in messages if "Failed to load resource" not in text] == []


@pytest.fixture(scope="session")
def demo(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """The server as it is before anything is edited."""
    server = start_server()
    server.wait_for("ready after")
    return server
