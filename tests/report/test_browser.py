"""The report in a browser: the slider changes frames, no network request, no overflow on a phone."""

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
# Elements that overflow the screen outside of scrolling containers
OVERFLOWING = """
const scrolls = (e) => e && (['auto', 'scroll'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.querySelectorAll('main *')]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement) && !scrolls(e))
  .map((e) => e.outerHTML.slice(0, 80));
"""
SMALL_TEXT = """
return [...document.querySelectorAll('main *')]
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
  .filter((e) => parseFloat(getComputedStyle(e).fontSize) < 11.5).map((e) => e.outerHTML.slice(0, 80));
"""
VISIBLE_IMAGES = """
return [...document.querySelectorAll('.viewer')[arguments[0]].querySelectorAll('.strip')]
  .map((strip) => [...strip.children].filter((e) => e.offsetParent).map((e) => e.querySelector('img').alt));
"""


@contextlib.contextmanager
def browser(*, script: bool = True) -> Iterator[Any]:
    """Start a headless Chromium without network, or skip."""
    binary = shutil.which("google-chrome") or program("chromium", package="chromium")
    driver = program("chromedriver", package="chromium-driver")
    selenium = pytest.importorskip("selenium.webdriver")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    # Containers do not allow the namespaces of the sandbox, and their /dev/shm is small.
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{option}")
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
    """Return the URLs requested since the last call, without data URIs."""
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
    return {url for url in urls if not url.startswith("data:")}


def test_slider_changes_frames_without_network_requests(ensemble_report, tmp_path):
    page = ensemble_report
    with browser() as chrome:
        for screen in (DESKTOP, PHONE):
            opened(chrome, page, screen)
            assert requested(chrome) == {page.as_uri()}
            assert chrome.execute_script("return document.documentElement.scrollWidth") <= screen[0]
            assert chrome.execute_script(OVERFLOWING) == []
            assert chrome.execute_script(SMALL_TEXT) == []
            broken = "return [...document.images].filter((e) => !e.complete || !e.naturalWidth).map((e) => e.alt)"
            assert [alt for alt in chrome.execute_script(broken) if "Animation" not in alt] == [], (
                "except collapsed ones"
            )
            _check_slider(chrome)
            _check_animation(chrome)
            _keep_screenshot(chrome, tmp_path / f"page-{screen[0]}.png")
            assert requested(chrome) == set(), "slider and animation request nothing"
        assert chrome.get_log("browser") == []


def _check_slider(chrome: Any) -> None:
    """Move the slider of the first viewer by keys, and check the visible frames."""
    from selenium.webdriver.common.keys import Keys

    slider = chrome.find_element("css selector", ".viewer input")
    before, others = chrome.execute_script(VISIBLE_IMAGES, 0), chrome.execute_script(VISIBLE_IMAGES, 1)
    assert len(before) == 6 and all(len(shown) == 1 and " at +5 min:" in shown[0] for shown in before)
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    after = chrome.execute_script(VISIBLE_IMAGES, 0)
    assert all(len(shown) == 1 and " at +15 min:" in shown[0] for shown in after)
    assert chrome.find_element("css selector", ".viewer output").text == "+15 min"
    assert slider.get_attribute("aria-valuetext") == "+15 minutes"
    assert chrome.execute_script(VISIBLE_IMAGES, 1) == others, "each viewer has its own slider"
    slider.send_keys(Keys.END)
    assert all(" at +30 min:" in shown[0] for shown in chrome.execute_script(VISIBLE_IMAGES, 0))


def _check_animation(chrome: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    button = chrome.find_element("css selector", ".viewer button")
    button.click()
    WebDriverWait(chrome, 20).until(lambda _: chrome.find_element("css selector", ".viewer output").text == "+5 min")
    button.click()
    assert button.text == "Play"


def _keep_screenshot(chrome: Any, path: Path) -> None:
    """Write a screenshot of the report to the folder of the test."""
    screenshot = chrome.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(screenshot["data"]))
    assert path.stat().st_size > 10_000


def test_all_lead_times_are_visible_without_script(ensemble_report):
    with browser(script=False) as chrome:
        opened(chrome, ensemble_report, PHONE)
        strips = chrome.find_elements("css selector", ".viewer .strip")
        figures = strips[0].find_elements("css selector", "figure")
        assert len(figures) == 6 and all(figure.is_displayed() for figure in figures)
        assert not chrome.find_element("css selector", ".viewer .controls").is_displayed()
