from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from glm5.report import write_report
from tests.report.fake_run import Shape, write_fake_run

Open = Callable[..., Page]


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    """Open a page; at the end, nothing may have gone wrong in it and it may have asked the network for nothing."""
    problems: list[str] = []
    contexts = []

    def open_page(path: Path, width: int = 1280, scheme: str = "light", script: bool = True) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or problems.append(r.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_fake_run(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_every_chart_is_drawn(show: Open, report: Path, width: int, scheme: str) -> None:
    page = show(report, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.wait_for_function("!document.querySelector('.outline')")
    assert page.locator(".chart").count() == 8
    for drawn in page.locator(".plot > svg").all():
        assert drawn.locator("path.curve").count() > 0
        assert all("NaN" not in (path.get_attribute("d") or "NaN") for path in drawn.locator("path.curve").all())


@pytest.mark.parametrize(
    "shape", [Shape(steps=1), Shape(steps=1, nan_at=(1,)), Shape(steps=40, nan_at=tuple(range(9, 40)))]
)
def test_odd_runs_are_drawn_without_errors(show: Open, tmp_path: Path, shape: Shape) -> None:
    page = show(write_report(write_fake_run(tmp_path, shape)), 400)
    page.wait_for_function("!document.querySelector('.outline')")
    for name in ("tokens", "time"):
        page.locator(".axis label", has_text=name).click()
    for button in page.locator(".log:visible").all():
        button.click()
    assert "NaN" not in page.locator("main").inner_html()
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_a_pointer_reads_all_charts_of_its_stage(show: Open, report: Path) -> None:
    page = show(report)
    final = page.locator(".chart").nth(0).locator(".legend output").first.inner_text()
    page.locator(".chart").nth(0).locator(".plot").hover(position={"x": 300, "y": 100})
    assert page.locator(".chart").nth(0).locator(".legend output").first.inner_text() != final
    readings = [cursor.inner_text() for cursor in page.locator(".cursor").all()]
    assert len(set(readings)) == 1
    assert readings[0].startswith("step 1")
    assert page.locator(".crosshair").count() == 8
    page.mouse.move(2, 2)
    assert page.locator(".crosshair").count() == 0
    assert page.locator(".chart").nth(0).locator(".legend output").first.inner_text() == final


def test_a_curve_can_be_hidden_and_an_axis_exchanged(show: Open, report: Path) -> None:
    page = show(report)
    held_out = page.locator(".chart").nth(1)
    assert held_out.locator("path.curve").count() == 5
    held_out.locator(".legend button", has_text="python").click()
    assert held_out.locator("path.curve").count() == 4
    assert "600" in held_out.locator(".plot").inner_text()
    page.locator(".axis label", has_text="tokens").click()
    assert "4M" in held_out.locator(".plot").inner_text()
    page.locator(".axis label", has_text="time").click()
    assert "10 min" in held_out.locator(".plot").inner_text()


def test_the_slider_moves_every_continuation_through_the_training(show: Open, report: Path) -> None:
    page = show(report)
    assert page.locator(".moments .now").first.inner_text().startswith("step 600")
    page.locator(".slider input").fill("0")
    assert all(now.inner_text().startswith("step 0") for now in page.locator(".moments .now").all())
    assert page.locator(".slider output").inner_text() == "step 0 · 0 tokens"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_can_be_turned_round(show: Open, report: Path, scheme: str) -> None:
    page = show(report, scheme=scheme)
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.locator(".theme").click()
    assert page.evaluate(background) != before
    page.locator(".theme").click()
    assert page.evaluate(background) == before


def test_without_a_script_nothing_but_the_pointer_is_missing(show: Open, report: Path) -> None:
    page = show(report, script=False)
    assert page.locator(".outline polyline").count() > 8
    assert page.locator(".moments li:visible").count() == page.locator(".moments li").count() > 3
    assert page.locator(".axis:visible, .log:visible, .theme:visible, .slider:visible").count() == 0


def test_ticks_are_round_and_within_their_range(show: Open, report: Path) -> None:
    page = show(report)
    ranges = [[0, 600], [1.02, 3.4], [-3, -2.9], [0, 1e-4], [1e-9, 5e12], [7, 7.0001], [0.19, 4]]
    for low, high in ranges:
        for call in ("linearTicks", "logTicks") if low > 0 else ("linearTicks",):
            ticks = page.evaluate(f"{call}({low}, {high}, 5)")
            slack = (high - low) * 1e-6
            assert 2 <= len(ticks) <= 16, (call, low, high, ticks)
            assert all(low - slack <= tick <= high + slack for tick in ticks)
            assert ticks == sorted(ticks)
