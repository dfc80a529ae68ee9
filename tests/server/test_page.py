"""The chat page in a real browser: streaming, folded thoughts, tool rounds, figures, stopping, and text that is no
HTML."""

import pytest

from glm5.text.messages import Message, ToolCall

ANSWER = Message("assistant", "**Sunny** <img src=x onerror=alert(1)>\n\n```py\nprint(1)\n```\n\nDone.", "A thought.")
CALL = Message("assistant", "", None, (ToolCall("roll_dice", {"count": 2, "sides": 1}),))


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    yield page
    page.close()


def say(page, text):
    page.fill("#text", text)
    page.keyboard.press("Enter")


def test_an_answer_with_its_thought_folded_and_its_figures(scripted, page):
    server, _ = scripted(ANSWER)
    page.goto(server.url)
    say(page, "weather?")
    page.locator(".figures").wait_for()
    assert page.locator(".words b").first.inner_text() == "Sunny"
    assert page.locator(".words pre").inner_text() == "print(1)"
    assert "<img src=x" in page.locator(".turn .words").inner_text()
    assert page.locator("img").count() == 0
    assert not page.locator(".thought div").is_visible()
    page.click(".thought summary")
    assert page.locator(".thought div").inner_text() == "A thought."
    figures = page.locator(".figures").inner_text()
    assert "tokens/s" in figures
    assert "cached" in figures
    assert page.problems == []


def test_a_tool_round_is_shown_and_goes_on(scripted, page, tokenizer):
    server, engine = scripted(CALL, ANSWER)
    page.goto(server.url)
    page.click("#options-button")
    page.check("#tools")
    say(page, "roll")
    page.locator(".figures").nth(1).wait_for()
    assert page.locator(".call .name").inner_text() == "roll_dice"
    page.click(".call summary")
    assert page.locator(".call pre").nth(1).inner_text() == "1, 1"
    assert "<tool_response>1, 1</tool_response>" in tokenizer.decode(engine.requests[1].prompt_ids)
    assert page.problems == []


def test_stopping_and_starting_anew(scripted, page):
    server, engine = scripted([5] * 4000, ANSWER, seconds=0.01)
    page.goto(server.url)
    say(page, "go on for ever")
    page.locator(".turn .words, .turn .thought").first.wait_for()
    page.click("#send.stop")
    page.locator(".error", has_text="Stopped.").wait_for()
    page.click("#fresh")
    assert page.locator("article").count() == 0
    say(page, "again")
    page.locator(".figures").wait_for()
    assert engine.stats().running == 0


def test_a_key_is_asked_for_and_used(scripted, page):
    server, _ = scripted(ANSWER, api_keys=("open",))
    page.goto(server.url)
    page.get_by_text("wants an API key").wait_for()
    page.click("#options-button")
    page.fill("#key", "open")
    page.keyboard.press("Enter")
    page.get_by_text("tokens of context").wait_for()
    say(page, "weather?")
    page.locator(".figures").wait_for()
