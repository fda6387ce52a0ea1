"""The pages in a real browser: no error, nothing asked of anybody, all parts to be seen, light, dark, narrow, printed.

Needs a Chromium (apt-get install chromium, or FASTLG_BROWSER=PATH); skips without.
"""

from __future__ import annotations

import pytest
from browser import find_browser, opened
from patience import wait_until

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here (apt-get install chromium, or FASTLG_BROWSER=PATH)"
)
HIDDEN = """[...document.querySelectorAll('section, h1, h2, figure img, .views img, .cards img, .badges li, nav a')]
  .filter(one => !one.checkVisibility({opacityProperty: true, visibilityProperty: true})
                 || one.getBoundingClientRect().width < 8 || one.getBoundingClientRect().height < 8)
  .map(one => one.outerHTML.slice(0, 80))"""
LOADED = """Promise.all([...document.images].map(one => one.decode().then(() => one.naturalWidth > 0, () => false)))"""
GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module", params=["both", "guided"])
def page(request, reported):
    with opened(reported.pages[request.param], BROWSER) as page:
        page.address = reported.pages[request.param].resolve().as_uri()
        yield page


def test_all_parts_are_to_be_seen_without_an_error_or_a_request(page, reported):
    assert page.ask("document.querySelectorAll('section').length") in (8, 9)
    assert page.ask(HIDDEN) == []
    assert len(loaded := page.ask(LOADED)) > 20 and all(loaded)
    shown = page.ask("document.body.innerText")
    assert all(name in shown for name in reported.names)
    assert page.ask("document.scripts.length") == 0 and page.ask("document.querySelectorAll('[onerror]').length") == 0
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith("data:image/")] == [page.address]


def test_it_follows_the_readers_colours_a_narrow_window_and_paper(page):
    drawn = "document.querySelector('picture img').currentSrc"
    ground, chart = page.ask(GROUND), page.ask(drawn)
    page.look(1100, 900, "dark")
    wait_until(lambda: page.ask(drawn) != chart)  # a browser takes another picture when it gets to it
    assert ground == "rgb(255, 255, 255)" != page.ask(GROUND)
    page.look(400, 800, "light")
    assert page.ask("document.documentElement.scrollWidth") <= 400, "nothing but tables is scrolled sideways"
    page.look(800, 1100, "dark", "print")
    assert page.ask(GROUND) == "rgb(255, 255, 255)"
    assert page.ask("document.querySelector('nav').checkVisibility()") is False
    whole = page.ask("(own => own.scrollHeight - own.clientHeight)(document.querySelector('pre'))")
    assert whole <= 2, "on paper the whole config is there"
    assert page.problems == []
