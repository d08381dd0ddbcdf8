"""What answers at the address of a rollout server, asked without an engine: its version, and whether it has a lock."""

from contextlib import suppress
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from siri.errors import InputError
from siri.rollout.answers import parsed, table, text
from siri.rollout.dispatch import BadAnswer
from siri.rollout.guard import SECRET, headers


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: the answer of the address itself counts."""

    def redirect_request(self, *_: Any) -> None:
        return None


def version_of(url: str) -> str | None:
    """Version of the vLLM that answers there; None if nothing does. InputError where it lets nobody in without its
    secret."""
    try:
        request = Request(f"{url}/version", headers=brought_along())
        with build_opener(ProxyHandler({}), _Stay()).open(request, timeout=5) as answer:
            return text(table(parsed(answer.read(2**20), "/version"), "/version").get("version"), "the version")
    except HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise InputError(
                f"rollout server {url}: refuses this machine ({error.code}); set SIRI_ROLLOUT_SECRET as it was set "
                "where the server was started"
            ) from None
        return None
    except (OSError, HTTPException, ValueError, BadAnswer, OverflowError):
        return None


def brought_along() -> dict[str, str]:
    """The headers of every request. InputError where the secret cannot be read."""
    try:
        return headers()
    except ValueError as error:
        raise InputError(str(error)) from None


def refuse_open(url: str, *, insecure: bool) -> None:
    """InputError for a server on another node that lets in whoever reaches it, unless that is wanted. On this node
    launch/serve.sh has it listen where nobody else does."""
    if not insecure and not _of_this_node(url) and _lets_strangers_in(url):
        raise InputError(
            f"rollout server {url} takes weights and commands from whoever reaches it; start it with {SECRET} set "
            "(launch/serve.sh), or use --rollout-insecure"
        )


def _of_this_node(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _lets_strangers_in(url: str) -> bool:
    """Whether it answers a request that brings another secret; False where nothing answers."""
    request = Request(f"{url}/version", headers={"Authorization": "Bearer another"})
    try:
        with build_opener(ProxyHandler({}), _Stay()).open(request, timeout=5):
            return True
    except HTTPError as error:
        error.close()
        return error.code not in (401, 403)
    except (OSError, HTTPException, ValueError, OverflowError):
        return False
