"""Pages work in a browser: without a network, an error or a way out for names, on wide and narrow screens."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from fedsim.config import Config, choices, with_settings
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result, write_comparison, write_run
from fedsim.results.report.charts.curve_data import curves_of_panels
from fedsim.results.report.charts.curves import curves
from fedsim.results.report.charts.embedded import embedded
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.facets import panels_of
from tests.conftest import TINY
from tests.results.report import cases

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH to open pages with"),
]
SCRIPT = '</script><img src=x onerror="window.stolen = 1"><b>\'&quot;'
NAMES = (SCRIPT, "__proto__ constructor $\\frac$ a\u202eb\u2066\u0007")
# What is copied, also where the browser of a test lets no page write to the clipboard.
CLIPBOARD = (
    "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => { window.copied = text; }}})"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Browser, path: Path) -> tuple[Page, list[str]]:
    """Return the page once its charts are drawn, and what it has asked for or complained about."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce")
    page.set_default_timeout(60_000)
    page.add_init_script(CLIPBOARD)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]")
    return page, told


def config(**changes: Any) -> Config:
    settings = with_settings(TINY, {tuple(key.split("__")): value for key, value in changes.items()})
    return choices.resolve(Config.parse(settings, "tiny"))


def resize(page: Page, width: int) -> None:
    """Change the width of the window, and wait until all charts are drawn for it."""
    page.evaluate("document.documentElement.removeAttribute('data-drawn')")
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_selector("html[data-drawn]")


def assert_fits(page: Page) -> None:
    """Check that nothing scrolls sideways on a wide screen, as the page is, and on a narrow one."""
    assert page.evaluate("innerWidth") == 1280
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    resize(page, 390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def assert_accessible(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert not found, [(each["id"], [node["target"] for node in each["nodes"]]) for each in found]


def assert_printable(page: Page) -> None:
    """Check that a page of A4 shows whole charts in dark letters, whatever is on the screen, and nothing to click."""
    resize(page, 700)
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    too_wide = "boxes => boxes.filter(box => box.querySelector('svg').getBoundingClientRect().right > innerWidth + 1)"
    assert page.eval_on_selector_all(".chart", f"{too_wide}.map(box => box.dataset.chart)") == []
    letters = "texts => [...new Set(texts.map(text => getComputedStyle(text).fill))]"
    assert page.eval_on_selector_all(".role-axis-label text", letters) == ["rgb(26, 26, 26)"]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".controls:visible, .hint:visible, summary:visible, input:visible").count() == 0


def column(page: Page, label: str, place: int) -> list[str]:
    rows = page.get_by_role("table", name=label, exact=True).locator("tbody tr:not(.hidden)")
    return [row.locator("td, th").nth(place).inner_text() for row in rows.all()]


def test_a_comparison_is_drawn_sorted_filtered_and_safe(browser: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    strategies = [{"name": "full"}, {"name": "local"}, *({"name": "layer_set", "shared": name} for name in NAMES)]
    results = [
        cases.result(
            config(strategy=strategy, partition__alpha=alpha, seed=seed, model__head=SCRIPT),
            rng.uniform(0.2, 0.9, (3, 4)),
            up=[1000.0] * 3 if strategy["name"] != "local" else None,
            experiment=tmp_path / "a\"b<i>'c",
        )
        for strategy in strategies
        for alpha in (0.1, 1.0)
        for seed in (0, 1)
    ]
    page, told = opened(browser, write_comparison(results, tmp_path / "out"))
    assert page.locator(".chart").count() > 0
    boxes = "boxes => boxes.filter(box => !box.querySelector('svg .role-mark > *')).map(box => box.dataset.chart)"
    assert not told
    assert page.eval_on_selector_all(".chart", boxes) == []

    # Names are text, with control characters as escapes.
    assert page.evaluate("window.stolen === undefined && Object.prototype.stolen === undefined")
    assert page.locator("body b, body i, img:not([src^=data])").count() == 0
    shown = page.inner_text("body")
    assert all(name in shown for name in (SCRIPT, "__proto__ constructor $\\frac$ a\\u202eb\\u2066\\x07"))
    assert "\u202e" not in page.content()

    # The pivot: a method in each row, a setting in each column, the best marked, sorted and filtered.
    assert page.locator("#pivot td.best").count() == 2
    pivot = page.locator("#pivot table").get_attribute("aria-label") or ""
    page.locator("#pivot").get_by_role("button", name="alpha 1.0").click()
    values = [float(text.split()[0]) for text in column(page, pivot, 2)]
    assert values == sorted(values, reverse=True)
    assert len(values) == len(strategies)
    page.get_by_label("Filter the methods").fill("__proto__")
    assert len(column(page, pivot, 0)) == 1
    page.get_by_label("measure").select_option(label="worst 10 %")
    assert len(column(page, "worst 10 % by alpha", 0)) == 1

    # A table is sorted by the keyboard, both ways, and explained on each heading.
    heading = page.get_by_role("table", name="Last round", exact=True).get_by_role(
        "button", name="personalised", exact=True
    )
    for _ in range(2):
        heading.press("Enter")
    values = [float(text.split()[0]) for text in column(page, "Last round", 4)]
    assert values == sorted(values)
    page.get_by_role("button", name="What is personalised?").first.press("Enter")
    assert page.locator("[popover]:popover-open").inner_text().startswith("Each client's own model")
    page.keyboard.press("Escape")

    # Another axis is another chart; a method alone fades the others.
    before = page.locator(".chart svg").first.inner_html()
    page.get_by_role("group", name="horizontal axis:").first.get_by_label("bytes").check()
    page.wait_for_function("before => document.querySelector('.chart svg').innerHTML !== before", arg=before)
    assert page.get_by_text("bytes up and down so far").count() > 0
    page.locator("[data-chart=accuracy] .role-legend-label text").first.click()
    page.wait_for_selector("[data-chart=accuracy] .mark-line path[opacity='0.12']", state="attached")

    # A point has its values on hover, and a chart a name for those who do not see it.
    page.locator("[data-chart=accuracy] .role-mark.mark-symbol path").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert {"line", "value", "round"} <= {*page.locator("#vg-tooltip-element td.key").all_inner_texts()}
    named = "boxes => boxes.every(box => box.querySelector('svg [aria-label], svg[aria-label]'))"
    assert page.eval_on_selector_all(".chart", named)

    # Texts are copied as they are in the page's data, and as they stand above the button.
    page.get_by_role("button", name="Copy CSV").click()
    page.wait_for_selector(".status:text-is('copied')")
    assert page.evaluate("copied").startswith("method,strategy,partition.alpha,metric,at,seeds,")
    page.locator("[data-copy-above]").last.press("Enter")
    page.wait_for_function("copied.startsWith('@misc{fedsim,')")

    assert_accessible(page)
    page.get_by_role("button", name="Dark").press("Enter")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert_accessible(page)
    assert_fits(page)
    assert_printable(page)
    assert not told


def test_a_run_is_drawn_and_readable_without_scripts(
    browser: Browser, play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    path = write_run(read_result(play(config(barriers__every=1))), tmp_path / "out")
    page, told = opened(browser, path)
    assert page.locator(".chart[data-chart=curves] .mark-line path").count() > 0
    labels = page.locator(".chart[data-chart=curves] .role-axis-label text").all_text_contents()
    assert [label for label in labels if label and "%" not in label] == ["1", "2"]  # each round once
    page.get_by_role("radio", name="Loss").check()
    before = page.locator(".chart[data-chart=strip] svg").inner_html()
    page.locator("input[type=range]").first.press("ArrowLeft")
    wanted = "before => document.querySelector('.chart[data-chart=strip] svg').innerHTML !== before"
    page.wait_for_function(wanted, arg=before)
    assert_accessible(page)
    assert_fits(page)
    assert not told
    plain = browser.new_page(java_script_enabled=False)
    plain.goto(path.as_uri())
    assert "the 4 clients' own models have a mean accuracy of" in plain.inner_text(".verdict")
    assert plain.get_by_role("table").first.locator("tbody tr").count() > 0
    assert plain.locator("noscript").is_visible()


def test_the_curves_of_100_long_runs_take_less_than_two_megabytes() -> None:
    rng = np.random.default_rng(0)
    member = cases.result(config(), rng.uniform(0.2, 0.9, (500, 2)), up=rng.uniform(1e3, 1e6, 500))
    groups = [Group(f"method {number}", {}, [member]) for number in range(100)]
    chart = curves(curves_of_panels(panels_of(groups)))
    assert chart is not None
    text = json.dumps(embedded({"accuracy": chart}))
    assert len(text) < 2e6
    assert all(group.label in text for group in groups)
