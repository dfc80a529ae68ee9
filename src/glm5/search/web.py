"""The live web: a search service described by a URL with holes, and pages fetched under rules.

SearxNG, Brave and Tavily are rows of one table; any other service that answers with JSON is one more row.

    WebSearch(searxng("http://localhost:8080"))
    WebSearch(SearchService("https://host/find?q={query}&n={limit}", results="hits"))
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from glm5.errors import UsageError
from glm5.search.backend import BackendError, Hit, Page
from glm5.search.fetch import FetchRules, fetch_page

ATTEMPTS = 3
_SECONDS = 20.0  # for one search


@dataclass(frozen=True, slots=True)
class SearchService:
    """How to ask a search service, and where its answer holds the results.

    Attributes:
        url: with `{query}`, and `{limit}` where the service takes a number of results.
        results: the keys that lead to the list of results, such as `web.results`.
        snippet: the key of a result's text; its address is under `url` and its title under `title`.
        body: for a service that wants a POST: its JSON, where the values `{query}` and `{limit}` are filled in.
    """

    url: str
    results: str = "results"
    snippet: str = "content"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raises UsageError where the query has no place."""
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"a search service's URL must begin with http:// or https://, not {self.url!r}")
        if "{query}" not in self.url and "{query}" not in (self.body or {}).values():
            raise UsageError(f"{self.url} has no {{query}} to put the query in")


def searxng(base_url: str) -> SearchService:
    """A SearxNG instance; its settings must allow the format json."""
    return SearchService(base_url.rstrip("/") + "/search?q={query}&format=json")


def brave(api_key: str) -> SearchService:
    """Brave's search API."""
    url = "https://api.search.brave.com/res/v1/web/search?q={query}&count={limit}"
    return SearchService(url, "web.results", "description", {"x-subscription-token": api_key})


def tavily(api_key: str) -> SearchService:
    """Tavily's search API."""
    body = {"query": "{query}", "max_results": "{limit}"}
    return SearchService("https://api.tavily.com/search", headers={"authorization": f"Bearer {api_key}"}, body=body)


class WebSearch:
    """The live web as a `Backend`."""

    def __init__(self, service: SearchService, rules: FetchRules | None = None) -> None:
        """Nothing is sent yet."""
        self._service, self._rules = service, rules or FetchRules()
        self._client = httpx.AsyncClient(timeout=_SECONDS)

    async def search(self, query: str, limit: int) -> list[Hit]:
        """See `Backend.search`; results on blocked hosts are left out."""
        raw: Any = await self._ask(query, limit)
        where = self._service.results
        try:
            for key in where.split("."):
                raw = raw[key]
            hits = [Hit(r["url"], r.get("title") or "", r.get(self._service.snippet) or "") for r in raw]
        except (KeyError, TypeError, AttributeError) as error:
            raise BackendError(f"{self._host} has no results under {where!r} in its answer ({error!r})") from error
        return [hit for hit in hits if not self._rules.blocks(hit.address)][:limit]

    async def open(self, address: str) -> Page:
        """See `Backend.open`."""
        return await fetch_page(self._client, address, self._rules)

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._client.aclose()

    @property
    def _host(self) -> str:
        return httpx.URL(self._service.url.partition("?")[0]).host

    async def _ask(self, query: str, limit: int) -> Any:
        service = self._service
        url = service.url.replace("{query}", quote(query, safe="")).replace("{limit}", str(limit))
        filled = {"{query}": query, "{limit}": limit}
        body = None if service.body is None else {k: filled.get(str(v), v) for k, v in service.body.items()}
        for _ in range(ATTEMPTS):
            try:
                response = await self._client.request(
                    "GET" if body is None else "POST", url, headers=dict(service.headers), json=body
                )
            except httpx.HTTPError as error:
                failure = f"{type(error).__name__} {error}".strip()
                continue
            if response.is_success:
                try:
                    return response.json()
                except json.JSONDecodeError:
                    raise BackendError(f"{self._host} did not answer with JSON: {response.text[:200]!r}") from None
            failure = f"{response.status_code} {response.text[:200]}".rstrip()
            if response.status_code < 500 and response.status_code != 429:
                raise BackendError(f"{self._host} refused the search: {failure}")
        raise BackendError(f"{self._host} failed {ATTEMPTS} times, the last time with: {failure}")
