from pathlib import Path

import pytest

from glm5.report import write_report
from tests.report import test_browser
from tests.report.fake_rl_run import write_fake_rl_run
from tests.report.test_browser import Open

show = test_browser.show


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_fake_rl_run(tmp_path_factory.mktemp("rl")))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_fits_and_every_chart_is_drawn(show: Open, report: Path, width: int, scheme: str) -> None:
    page = show(report, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.wait_for_function("!document.querySelector('.outline')")
    assert page.locator(".chart").count() == 12
    assert page.locator(".plot .interval").count() == 2
    assert all("NaN" not in (path.get_attribute("d") or "NaN") for path in page.locator(".interval").all())
    assert page.locator(".timeline svg").count() == 4


def test_rollouts_can_be_filtered_and_ordered(show: Open, report: Path) -> None:
    page = show(report)
    everything = page.locator(".list li:visible").count()
    assert page.locator(".list [aria-current]").count() == 1
    page.locator("[name=environment]").select_option("repair")
    chosen = page.locator(".list li:visible")
    assert 0 < chosen.count() < everything
    assert all("repair" in item.inner_text() for item in chosen.all())
    page.locator("[name=outcome]").select_option("failed")
    assert all("failed" in item.inner_text() for item in page.locator(".list li:visible").all())
    assert "the sandbox <b>died</b>" in page.locator(".rollout .warning").inner_text()
    page.locator("[name=environment]").select_option("")
    page.locator("[name=outcome]").select_option("")
    page.locator("[name=order]").select_option("best")
    assert page.locator(".list li:visible").first.inner_text().startswith("1")


def test_a_rollout_is_read_token_by_token(show: Open, report: Path) -> None:
    page = show(report)
    page.locator(".list li").nth(3).click()
    assert page.locator(".rollout .turn").count() == 2
    tokens = page.locator(".tokens span")
    assert tokens.count() == 120
    assert "nats · version" in (tokens.first.get_attribute("title") or "")
    colours = set()
    for paint in ("log-prob", "version", "mask"):
        page.locator(".paint label", has_text=paint).click()
        colours.add(page.evaluate("getComputedStyle(document.querySelector('.tokens span')).backgroundColor"))
    assert len(colours) == 3


def test_thousands_of_tokens_stay_quick(show: Open, tmp_path: Path) -> None:
    page = show(write_report(write_fake_rl_run(tmp_path, updates=4, tokens_per_turn=1400)))
    took = page.evaluate(
        """() => {
            const begin = performance.now();
            document.querySelectorAll(".list li")[2].click();
            document.querySelector(".rollout").getBoundingClientRect();
            return performance.now() - begin;
        }"""
    )
    assert page.locator(".tokens span").count() > 2500
    assert took < 1500  # tens of milliseconds on an idle machine


def test_without_a_script_the_list_is_there(show: Open, report: Path) -> None:
    page = show(report, script=False)
    assert page.locator(".list li:visible").count() > 10
    assert page.locator(".controls:visible").count() == 0
    assert "needs JavaScript" in page.locator(".rollout").inner_text()
