"""The HTML report in a real browser: it fits, it can be read, and the browser has nothing to complain about."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from purifier.reporting.formats import render

selenium = pytest.importorskip("selenium", reason="needs selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402

BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver", "chromium.chromedriver")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
DRIVER = next(filter(None, map(shutil.which, DRIVERS)), None)
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver"),
]

LEAST_CONTRAST = 4.5
"""WCAG 2.2, success criterion 1.4.3."""

CONTRASTS = """
const canvas = document.createElement('canvas'), context = canvas.getContext('2d', {willReadFrequently: true});
canvas.width = canvas.height = 1;
const rgba = colour => {
  context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].map(value => value / 255);
};
const over = (top, below) => [0, 1, 2].map(k => top[k] * top[3] + below[k] * (1 - top[3]));
const light = colour => {
  const [r, g, b] = colour.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  const layers = [];
  for (let one = element; one; one = one.parentElement) layers.push(rgba(getComputedStyle(one).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [1, 1, 1]);
};
const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
document.querySelectorAll('details').forEach(one => one.open = true);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, style = getComputedStyle(element);
  if (!walker.currentNode.data.trim() || element.closest('title') || !element.getClientRects().length) continue;
  const ground = behind(element), ink = rgba(element.closest('svg') ? style.fill : style.color);
  const [low, high] = [light(over(ink, ground)), light(ground)].sort((a, b) => a - b);
  found.push([(high + 0.05) / (low + 0.05), walker.currentNode.data.trim()]);
}
return found;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["healthy", "failing", "old"])
def page(request, tmp_path_factory) -> Path:
    found = (
        request.getfixturevalue("old_reports")[-1] if request.param == "old" else request.getfixturevalue(request.param)
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(found, "html", least=0.5 if request.param == "healthy" else None), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read(browser, page, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get_log("browser")
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sticking_out = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(one => !one.closest('.wide, svg') && "
        "one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 200))"
    )
    assert sticking_out == []
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 100
    assert [one for one in contrasts if one[0] < LEAST_CONTRAST] == []
    broken = "return [...document.images].filter(one => !one.complete || !one.naturalWidth).length"
    assert browser.execute_script(broken) == 0


def test_it_prints_as_a_document(browser, page):
    browser.get(page.as_uri())
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert printed["data"].startswith("JVBERi0")  # %PDF-
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
