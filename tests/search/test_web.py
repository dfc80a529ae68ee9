"""A real server on this machine plays the web and its search services, with every way to be unpleasant."""

import asyncio
import gzip
import json
import time
from dataclasses import replace

import httpx
import pytest

from glm5.errors import UsageError
from glm5.search.backend import BackendError, Hit, Page, PageError
from glm5.search.contamination import CanaryGuard, answered_before_search
from glm5.search.fetch import FetchRules, fetch_page
from glm5.search.readable import readable_text
from glm5.search.web import SearchService, WebSearch, brave, searxng, tavily
from glm5.text.messages import Message, ToolCall
from tests.search.conftest import Answer, run, web_server

HERE = FetchRules(private_networks=True)
PAGE = b"<html><head><title>A &amp; B</title></head><body><nav>menu</nav><article>%s</article></body></html>"


def fetch(address: str, rules: FetchRules = HERE, seconds: float = 10.0) -> Page:
    async def go() -> Page:
        async with httpx.AsyncClient() as client:
            return await fetch_page(client, address, rules, seconds)

    return run(go())


def answer(path: str, body: bytes) -> Answer:
    match path.split("?")[0]:
        case "/plain":
            return 200, {"content-type": "text/plain; charset=latin-1"}, "Café".encode("latin-1")
        case "/huge":
            return 200, {"content-type": "text/plain"}, b"x" * (50 * 2**20)
        case "/bomb":
            return 200, {"content-type": "text/plain", "content-encoding": "gzip"}, gzip.compress(b"0" * (50 * 2**20))
        case "/binary":
            return 200, {"content-type": "application/pdf"}, b"%PDF-1.7"
        case "/hidden-binary":
            return 200, {"content-type": "text/plain"}, bytes(range(256)) * 10
        case "/loop":
            return 302, {"location": "/loop2"}, b""
        case "/loop2":
            return 302, {"location": "/loop"}, b""
        case "/away":
            return 302, {"location": "https://blocked.example/page"}, b""
        case "/file":
            return 302, {"location": "file:///etc/passwd"}, b""
        case "/slow":
            time.sleep(2)
            return 200, {}, b"late"
        case "/empty":
            return 200, {"content-type": "text/html"}, PAGE % b""
    if path.startswith("/far"):
        return 302, {"location": f"/far{int(path[4:] or 0) + 1}"}, b""
    return 404, {}, b"gone"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/huge", "larger than 10 MB"),
        ("/bomb", "larger than 10 MB"),
        ("/binary", "application/pdf, not text"),
        ("/hidden-binary", "binary, not text"),
        ("/loop", "redirects in a circle"),
        ("/far", "redirects more than 5 times"),
        ("/away", "blocked host"),
        ("/file", "must begin with http"),
        ("/nowhere", "404"),
    ],
)
def test_a_bad_page_ends_in_a_sentence(path: str, words: str) -> None:
    rules = FetchRules(blocked_hosts=["blocked.example"], private_networks=True)
    with web_server(answer) as base, pytest.raises(PageError, match=words):
        fetch(base + path, rules)


def test_a_slow_page_is_given_up() -> None:
    began = time.monotonic()
    with web_server(answer) as base, pytest.raises(PageError, match="took longer"):
        fetch(base + "/slow", seconds=0.3)
    assert time.monotonic() - began < 4


def test_the_charset_of_a_page() -> None:
    with web_server(answer) as base:
        assert fetch(base + "/plain").text == "Café"


def test_a_dead_host() -> None:
    with pytest.raises(PageError, match="cannot be reached"):
        fetch("http://127.0.0.1:9/")
    with pytest.raises(PageError, match="there is no host"):
        fetch("http://no-such-host.invalid/", FetchRules())


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1/", "http://localhost:80/", "http://10.0.0.1/", "http://[::1]/", "http://169.254.169.254/"],
)
def test_the_own_network_is_not_the_web(address: str) -> None:
    with pytest.raises(PageError, match=r"private network|no host"):
        fetch(address, FetchRules())


def test_blocked_hosts_include_those_below() -> None:
    rules = FetchRules(blocked_hosts=["Example.org"])
    assert rules.blocks("https://example.org/x")
    assert rules.blocks("https://www.EXAMPLE.org./x")
    assert not rules.blocks("https://notexample.org/x")
    assert not rules.blocks("https://example.org.evil.net/x")


def test_html_without_its_menu() -> None:
    pytest.importorskip("trafilatura", reason="HTML needs the extra 'search'")
    words = b"<p>The wombat digs burrows in the hills of Tasmania, mostly at night.</p>" * 3
    title, text = readable_text(PAGE % words, "text/html; charset=utf-8")
    assert title == "A & B"
    assert "wombat" in text
    assert "menu" not in text
    with pytest.raises(PageError, match="holds no text"):
        readable_text(b"<html><head><title>T</title></head><body></body></html>", "text/html")
    with pytest.raises(PageError, match="5 MB of HTML"):
        readable_text(PAGE % (b"<p>x</p>" * 10**6), "text/html")


RESULTS = [
    {"url": "https://a.example/1", "title": "One", "content": "first", "description": "brave's"},
    {"url": "https://b.blocked.example/2", "title": None, "content": None},
]


def service(path: str, body: bytes) -> Answer:
    if path.startswith("/search?q=two%20words%26&format=json"):  # SearxNG
        return 200, {}, json.dumps({"results": RESULTS}).encode()
    if path.startswith("/res/v1/web/search?q=two%20words%26&count=5"):  # Brave
        return 200, {}, json.dumps({"web": {"results": RESULTS}}).encode()
    if path == "/search" and json.loads(body) == {"query": "two words&", "max_results": 5}:  # Tavily
        return 200, {}, json.dumps({"results": RESULTS}).encode()
    if path.startswith("/words"):
        return 200, {}, b"<html>sorry</html>"
    if path.startswith("/other"):
        return 200, {}, b'{"hits": []}'
    if path.startswith("/key"):
        return 401, {}, b"bad key"
    return 503, {}, b"down"


@pytest.mark.parametrize(
    ("known", "host"),
    [
        (searxng("http://host/"), "http://host"),
        (brave("key"), "https://api.search.brave.com"),
        (tavily("key"), "https://api.tavily.com"),
    ],
    ids=["searxng", "brave", "tavily"],
)
def test_every_known_service(known: SearchService, host: str) -> None:
    with web_server(service) as base:
        rules = FetchRules(blocked_hosts=["blocked.example"])
        [hit] = run(WebSearch(replace(known, url=known.url.replace(host, base)), rules).search("two words&", 5))
    assert (hit.address, hit.title) == ("https://a.example/1", "One")
    assert hit.snippet == ("brave's" if "brave" in host else "first")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/down", "failed 3 times, the last time with: 503"),
        ("/key", "refused the search: 401 bad key"),
        ("/words", "did not answer with JSON"),
        ("/other", "no results under 'results'"),
    ],
)
def test_a_dead_service_is_nobodys_finding(path: str, words: str) -> None:
    with web_server(service) as base, pytest.raises(BackendError, match=words):
        run(WebSearch(SearchService(base + path + "?q={query}")).search("x", 3))


def test_a_service_that_is_not_there() -> None:
    with pytest.raises(BackendError, match="ConnectError"):
        run(WebSearch(searxng("http://127.0.0.1:9")).search("x", 3))
    with pytest.raises(UsageError, match=r"no \{query\}"):
        SearchService("https://host/search")
    with pytest.raises(UsageError, match="must begin with"):
        searxng("localhost:8080")


class TwoPages:
    """A backend in memory."""

    async def search(self, query: str, limit: int) -> list[Hit]:
        return [Hit("clean", "Clean", "fine"), Hit("leak", "Leak", "here: the-CANARY")][:limit]

    async def open(self, address: str) -> Page:
        return Page(address, address, "fine" if address == "clean" else "answers the-canary answers")

    async def close(self) -> None:
        pass


def test_pages_with_a_canary_stay_closed() -> None:
    guard = CanaryGuard(TwoPages(), ["the-canary"])
    assert [hit.address for hit in run(guard.search("x", 5))] == ["clean"]
    assert run(guard.open("clean")).text == "fine"
    with pytest.raises(PageError, match="canary"):
        run(guard.open("leak"))
    assert guard.met == ["leak", "leak"]
    assert run(CanaryGuard(TwoPages(), []).open("leak"))  # no canaries: nothing is held back


def test_an_answer_that_was_known_before_searching() -> None:
    def calls(query: str) -> Message:
        return Message("assistant", "", "let me look", (ToolCall("search", {"query": query}),))

    asked = [Message("user", "Which peak? Emi Koussi?")]
    found = Message("tool", "Emi Koussi", tool_call_id="1")
    later = Message("assistant", "It is Emi Koussi")
    assert not answered_before_search([*asked, calls("peaks of Chad"), found, later], ["Emi Koussi"])
    assert answered_before_search([*asked, calls("height of Emi Koussi"), found, later], ["Emi Koussi"])
    assert answered_before_search([*asked, later], ["Emi Koussi"])


def test_services_are_asked_side_by_side() -> None:
    async def go(base: str) -> int:
        web = WebSearch(searxng(base))
        found = await asyncio.gather(*(web.search("two words&", 5) for _ in range(8)))
        await web.close()
        return len(found)

    with web_server(service) as base:
        assert run(go(base)) == 8
