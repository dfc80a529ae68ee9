"""One page of the live web, fetched with limits: every way it can go wrong ends in a sentence, none in a hang.

Addresses come from a model that reads what strangers wrote. So each address, the given one and those it redirects to,
must be http or https, on no blocked host, and must not lead into the network this machine stands in. Names are looked
up again by the connection: a name server that answers differently the second time is not defended against.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx

from glm5.search.backend import Page, PageError
from glm5.search.readable import readable_text

MAX_BYTES = 10 * 2**20
MAX_REDIRECTS = 5
SECONDS = 30.0  # for a whole page, redirects included
_HEADERS = {"user-agent": "glm5-search/0.1", "accept": "text/html,text/*;q=0.9,application/json;q=0.8"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class FetchRules:
    """Where a page may come from.

    Attributes:
        blocked_hosts: these and everything below them; `example.org` blocks `www.example.org` too.
        private_networks: whether addresses of this machine and its networks may be opened.
    """

    blocked_hosts: Collection[str] = ()
    private_networks: bool = False

    def blocks(self, address: str) -> bool:
        """Whether the host of an address is blocked."""
        host = (urlsplit(address).hostname or "").rstrip(".").lower()
        return any(host == blocked or host.endswith(f".{blocked}") for blocked in map(str.lower, self.blocked_hosts))

    async def check(self, address: str) -> None:
        """Raises PageError where an address must not be opened."""
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise PageError(f"{address} is not an address: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise PageError(f"{address} is not the address of a page: it must begin with http:// or https://")
        if self.blocks(address):
            raise PageError(f"{address} is on a blocked host")
        if not self.private_networks:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError:
                raise PageError(f"{address} cannot be reached: there is no host {host}") from None
            if not all(ipaddress.ip_address(entry[4][0]).is_global for entry in found):
                raise PageError(f"{address} is inside a private network, which pages may not be opened from")


async def fetch_page(client: httpx.AsyncClient, address: str, rules: FetchRules, seconds: float = SECONDS) -> Page:
    """Follow redirects, read at most `MAX_BYTES`, and take out the text.

    Raises:
        PageError: the page cannot be read; the message begins with its address.
    """
    try:
        async with asyncio.timeout(seconds):
            where, content_type, data = await _download(client, address, rules)
            try:
                title, text = await asyncio.to_thread(readable_text, data, content_type)
            except PageError as error:
                raise PageError(f"{where} {error}") from None
    except TimeoutError:
        raise PageError(f"{address} took longer than {seconds:g} seconds") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PageError(f"{address} cannot be reached: {type(error).__name__} {error}".rstrip()) from None
    return Page(where, title, text)


async def _download(client: httpx.AsyncClient, address: str, rules: FetchRules) -> tuple[str, str, bytes]:
    """The address after redirects, its content type and its bytes."""
    visited: list[str] = []
    while True:
        await rules.check(address)
        if address in visited:
            raise PageError(f"{visited[0]} redirects in a circle")
        if len(visited) > MAX_REDIRECTS:
            raise PageError(f"{visited[0]} redirects more than {MAX_REDIRECTS} times")
        visited.append(address)
        async with client.stream("GET", address, headers=_HEADERS, follow_redirects=False) as response:
            if response.status_code in _REDIRECTS and "location" in response.headers:
                address = urljoin(address, response.headers["location"])
                continue
            if not response.is_success:
                raise PageError(f"{address} answers {response.status_code} {response.reason_phrase}".rstrip())
            data = bytearray()
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > MAX_BYTES:
                    raise PageError(f"{address} is larger than {MAX_BYTES >> 20} MB")
            return address, response.headers.get("content-type", ""), bytes(data)
