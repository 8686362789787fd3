"""The page in a browser: the slider moves the frames, nothing is asked of a network, nothing sticks out on a phone."""

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system_programs import program

DESKTOP, PHONE = (1280, 900), (390, 844)
# What of a page sticks out of the screen, where nothing around it scrolls.
STICKS_OUT = """
const scrolls = (e) => e && (['auto', 'scroll'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.querySelectorAll('main *')]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement) && !scrolls(e))
  .map((e) => e.outerHTML.slice(0, 80));
"""
SMALL_LETTERS = """
return [...document.querySelectorAll('main *')]
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
  .filter((e) => parseFloat(getComputedStyle(e).fontSize) < 11.5).map((e) => e.outerHTML.slice(0, 80));
"""
SHOWN = """
return [...document.querySelectorAll('.viewer')[arguments[0]].querySelectorAll('.strip')]
  .map((strip) => [...strip.children].filter((e) => e.offsetParent).map((e) => e.querySelector('img').alt));
"""


@contextlib.contextmanager
def browser(*, script: bool = True) -> Iterator[Any]:
    """Start a headless Chromium that has no network, or skip."""
    binary = shutil.which("google-chrome") or program("chromium", package="chromium")
    driver = program("chromedriver", package="chromium-driver")
    selenium = pytest.importorskip("selenium.webdriver")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    # Containers let nobody make the namespaces of the sandbox; their /dev/shm is small.
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{word}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.add_argument("--proxy-server=127.0.0.1:9")
    if not script:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("http_proxy", raising=False)
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")  # the driver's own port
        found = selenium.Chrome(options=options, service=service.Service(driver))
        try:
            yield found
        finally:
            found.quit()


def opened(chrome: Any, page: Path, screen: tuple[int, int]) -> None:
    width, height = screen
    measures = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", measures)
    chrome.get(page.as_uri())


def requested(chrome: Any) -> set[str]:
    """Return the addresses that were asked for since the last call, but those that hold their own content."""
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
    return {url for url in urls if not url.startswith("data:")}


def test_the_slider_moves_the_frames_and_nothing_is_asked_of_a_network(ensemble_page, tmp_path):
    page = ensemble_page
    with browser() as chrome:
        for screen in (DESKTOP, PHONE):
            opened(chrome, page, screen)
            assert requested(chrome) == {page.as_uri()}
            assert chrome.execute_script("return document.documentElement.scrollWidth") <= screen[0]
            assert chrome.execute_script(STICKS_OUT) == []
            assert chrome.execute_script(SMALL_LETTERS) == []
            broken = "return [...document.images].filter((e) => !e.complete || !e.naturalWidth).map((e) => e.alt)"
            assert [alt for alt in chrome.execute_script(broken) if "in motion" not in alt] == [], "but what is folded"
            _moves(chrome)
            _plays(chrome)
            _keep_screenshot(chrome, tmp_path / f"page-{screen[0]}.png")
            assert requested(chrome) == set(), "moving and playing asks for nothing"
        assert chrome.get_log("browser") == []


def _moves(chrome: Any) -> None:
    """Move the slider of the first viewer as a user does, by keys, and look at what is shown."""
    from selenium.webdriver.common.keys import Keys

    slider = chrome.find_element("css selector", ".viewer input")
    before, others = chrome.execute_script(SHOWN, 0), chrome.execute_script(SHOWN, 1)
    assert len(before) == 6 and all(len(shown) == 1 and " at +5 min:" in shown[0] for shown in before)
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    after = chrome.execute_script(SHOWN, 0)
    assert all(len(shown) == 1 and " at +15 min:" in shown[0] for shown in after)
    assert chrome.find_element("css selector", ".viewer output").text == "+15 min"
    assert slider.get_attribute("aria-valuetext") == "+15 minutes"
    assert chrome.execute_script(SHOWN, 1) == others, "each viewer has a slider of its own"
    slider.send_keys(Keys.END)
    assert all(" at +30 min:" in shown[0] for shown in chrome.execute_script(SHOWN, 0))


def _plays(chrome: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    button = chrome.find_element("css selector", ".viewer button")
    button.click()
    WebDriverWait(chrome, 20).until(lambda _: chrome.find_element("css selector", ".viewer output").text == "+5 min")
    button.click()
    assert button.text == "Play"


def _keep_screenshot(chrome: Any, path: Path) -> None:
    """Leave a picture of the whole page in the test's folder, for a person to look at."""
    made = chrome.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(made["data"]))
    assert path.stat().st_size > 10_000


def test_without_scripts_every_lead_is_there(ensemble_page):
    with browser(script=False) as chrome:
        opened(chrome, ensemble_page, PHONE)
        strips = chrome.find_elements("css selector", ".viewer .strip")
        figures = strips[0].find_elements("css selector", "figure")
        assert len(figures) == 6 and all(figure.is_displayed() for figure in figures)
        assert not chrome.find_element("css selector", ".viewer .controls").is_displayed()
