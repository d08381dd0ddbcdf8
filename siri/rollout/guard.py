"""A lock on every route of a `vllm serve` process, loaded with `--middleware siri.rollout.guard.Guard`.

vLLM's own --api-key is asked for under /v1 only, while the development routes that the trainer needs give weights and
commands to anybody. Nothing but Python's own library may be imported here.
"""

import hmac
import os
from pathlib import Path
from typing import Any

SECRET = "SIRI_ROLLOUT_SECRET"
"""Name of the variable that holds the secret, for the servers and for the trainer."""
SECRET_FILE = "SIRI_ROLLOUT_SECRET_FILE"
"""Name of the variable that says in which file it is; asked where the other is not set."""


def secret() -> str:
    """The secret, or "" where none is set. ValueError for a file that cannot be read or holds none."""
    if value := os.environ.get(SECRET, ""):
        return value
    path = os.environ.get(SECRET_FILE, "")
    if not path:
        return ""
    try:
        value = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{SECRET_FILE}: {path} cannot be read ({getattr(error, 'strerror', 'no ASCII')})") from None
    if not value or "\n" in value:
        raise ValueError(f"{SECRET_FILE}: {path} has to hold one line, the secret")
    return value


def headers() -> dict[str, str]:
    """What a request has to bring along, in the trainer; nothing where no secret is set."""
    value = secret()
    return {"Authorization": f"Bearer {value}"} if value else {}


class Guard:
    """ASGI middleware: passes on what brings the secret, whatever the route, and answers 401 to all else."""

    def __init__(self, app: Any) -> None:
        self.app = app
        wanted = secret()
        if not wanted:
            raise RuntimeError(f"{SECRET} is not set: a lock without a key")
        self._wanted = f"Bearer {wanted}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        given = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        known = len(given) == 1 and hmac.compare_digest(given[0], self._wanted)
        if known or scope["type"] == "lifespan":  # the server's own start and end
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": f"{SECRET} is missing or another".encode()})
        else:
            await send({"type": "websocket.close", "code": 1008})
