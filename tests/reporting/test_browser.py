"""The card in a real browser, at a phone's and a desk's width, in both colour schemes, with and without JavaScript."""

import base64
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from tests.reporting.card_run import Run, build_run

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver: apt-get install chromium chromium-driver"),
]
PHONE, DESK = (390, 844, True), (1280, 900, False)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LONG = "Donaudampfschifffahrtsgesellschaft" * 8


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A promoted card, a refused one with reasons, and one whose texts and names are as long as they can be without a space."""
    promoted = build_run(tmp_path_factory.mktemp("promoted"), rows=600, replicates=200, skill=0.75, champion=0.5)
    refused = build_run(tmp_path_factory.mktemp("refused"), rows=600, replicates=200, skill=0.3, floor=0.7)
    awkward = build_run(tmp_path_factory.mktemp("awkward"), rows=600, replicates=200, skill=0.3, floor=0.7)
    awkward.edit_predictions(lambda frame: frame.assign(text=LONG))
    awkward.edit("gate", lambda found: found["checks"][1].update(name=LONG, sentence=LONG, rule=LONG))
    awkward.edit("gate", lambda found: found.update(reasons=[LONG]))
    awkward.edit("ingest_report", lambda found: found.update(source=LONG))
    awkward.edit("data_report", lambda found: found["expectations"][0].update(expectation=LONG, observed=LONG))
    awkward.edit(
        "fairness", lambda found: found["attributes"]["airline"]["groups"].update({LONG: found["attributes"]["airline"]["unknown"]})
    )
    found = {"promoted": promoted, "refused": refused, "awkward": awkward}
    for run in found.values():
        run.render()
    return found


def show(
    browser: webdriver.Chrome, page: Path, size: tuple[int, int, bool] = PHONE, *, scheme: str = "light", scripts: bool = True
) -> None:
    width, height, mobile = size
    # A headless window has a least width; only the emulated screen is as narrow as a phone.
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    browser.get(page.as_uri())


@pytest.mark.parametrize("name", ["promoted", "refused", "awkward"])
@pytest.mark.parametrize("size", [PHONE, (320, 700, True), DESK], ids=["phone", "small phone", "desk"])
def test_page_does_not_scroll_sideways(browser: webdriver.Chrome, cards: dict[str, Run], name: str, size: tuple[int, int, bool]):
    show(browser, cards[name].outputs.card, size)
    browser.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    width, inner = browser.execute_script("return [document.scrollingElement.scrollWidth, window.innerWidth]")
    assert inner == size[0]
    assert width <= inner


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize(("name", "word"), [("promoted", "PROMOTE"), ("refused", "REFUSED")])
def test_verdict_is_in_the_first_screen(
    browser: webdriver.Chrome, cards: dict[str, Run], name: str, word: str, size: tuple[int, int, bool]
):
    show(browser, cards[name].outputs.card, size)
    box, text, top = browser.execute_script(
        "const e = document.getElementById('verdict'), b = e.getBoundingClientRect();"
        "return [[b.top, b.bottom, b.left, b.right], e.innerText, document.elementFromPoint(b.left + 5, b.top + 10) === e]"
    )
    assert text == word
    assert top, "something covers the verdict"
    assert 0 <= box[0] < box[1] <= size[1]
    assert 0 <= box[2] < box[3] <= size[0]


def test_no_console_message_and_no_request(browser: webdriver.Chrome, cards: dict[str, Run]):
    for run in cards.values():
        for scheme in ("light", "dark"):
            show(browser, run.outputs.card, scheme=scheme)
            assert browser.get_log("browser") == []
            assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def test_hostile_text_does_not_run(browser: webdriver.Chrome, cards: dict[str, Run], tmp_path: Path):
    """The page as a viewer shows it: even a script that slipped through escaping would be blocked by the page's own policy."""
    html = cards["promoted"].outputs.card.read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(html.replace("</main>", "<script>document.title = 'ran'</script><img src=x onerror=\"document.title = 'ran'\"></main>"))
    show(browser, page)
    assert browser.title.startswith("PROMOTE")
    assert len(browser.get_log("browser")) >= 2


def test_card_served_over_http_asks_for_nothing_else(browser: webdriver.Chrome, cards: dict[str, Run]):
    asked: list[str] = []
    body = cards["promoted"].outputs.card.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.05))
        thread.start()
        try:
            show(browser, cards["promoted"].outputs.card)
            browser.get(f"http://127.0.0.1:{server.server_port}/card.html")
            assert browser.title.startswith("PROMOTE")
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["/card.html"]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_tables_keep_their_headers_and_roles(browser: webdriver.Chrome, cards: dict[str, Run], size: tuple[int, int, bool]):
    """Reflowed tables must stay tables for a screen reader: asked of the browser's accessibility tree."""
    show(browser, cards["refused"].outputs.card, size)
    tables, closed, headless = browser.execute_script(
        "const all = [...document.querySelectorAll('table')];"
        "return [all.length, all.filter(t => t.closest('details:not([open])')).length, all.filter(t => !t.querySelector('thead th') || !t.caption).length]"
    )
    assert tables - closed >= 9
    assert headless == 0
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [node["role"]["value"] for node in nodes if not node.get("ignored")]
    assert closed >= 3  # rates by group, evaluations, the bins of the reliability diagram: nobody reads them before opening their <details>
    assert roles.count("table") == tables - closed
    gate_checks = browser.execute_script("return document.querySelectorAll('.gate tbody tr').length")
    assert roles.count("rowheader") >= gate_checks
    assert roles.count("columnheader") >= 6 + 4 + 6


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_page_reads_the_same_without_javascript(browser: webdriver.Chrome, cards: dict[str, Run], size: tuple[int, int, bool]):
    """Two pictures of the whole page, with and without scripts, are equal."""

    def picture() -> bytes:
        height = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]["height"]
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(height, 3000), "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip})
        return base64.b64decode(shot["data"])

    show(browser, cards["refused"].outputs.card, size)
    with_scripts = picture()
    show(browser, cards["refused"].outputs.card, size, scripts=False)
    without = picture()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert len(with_scripts) > 50_000
    assert without == with_scripts


CONTRAST = """
const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
const channel = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => 0.2126 * channel(c[0] / 255) + 0.7152 * channel(c[1] / 255) + 0.0722 * channel(c[2] / 255);
const over = (top, under) => { const a = top.length > 3 ? top[3] : 1; return [0, 1, 2].map(i => top[i] * a + under[i] * (1 - a)); };
const behind = e => { const layers = []; for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((under, top) => top.length ? over(top, under) : under, [255, 255, 255]); };
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !e.getClientRects().length) continue;
  const under = behind(e), a = light(over(parse(getComputedStyle(e).color), under)), b = light(under);
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["promoted", "refused"])
def test_all_text_has_enough_contrast(browser: webdriver.Chrome, cards: dict[str, Run], name: str, scheme: str):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    show(browser, cards[name].outputs.card, DESK, scheme=scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    found: list[tuple[float, str]] = browser.execute_script(CONTRAST)
    assert len(found) > 300
    assert [entry for entry in found if entry[0] < 4.5] == []


def test_dark_page_is_dark(browser: webdriver.Chrome, cards: dict[str, Run]):
    background: Callable[[], str] = partial(browser.execute_script, "return getComputedStyle(document.body).backgroundColor")
    show(browser, cards["promoted"].outputs.card, scheme="light")
    light = background()
    show(browser, cards["promoted"].outputs.card, scheme="dark")
    assert sum(int(part) for part in background()[4:-1].split(",")) < 150 < 600 < sum(int(part) for part in light[4:-1].split(","))
