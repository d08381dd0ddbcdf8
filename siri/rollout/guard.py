"""A lock on every route of a `vllm serve` process, loaded with `--middleware siri.rollout.guard.Guard`.

vLLM's own --api-key is asked for under /v1 only, while the development routes that the trainer needs give weights and
commands to anybody. Nothing but Python's own library may be imported here.
"""

import hmac
import os
from typing import Any

SECRET = "SIRI_ROLLOUT_SECRET"
"""Name of the variable that holds the secret, for the servers and for the trainer."""


def headers() -> dict[str, str]:
    """What a request has to bring along, in the trainer; nothing where no secret is set."""
    secret = os.environ.get(SECRET, "")
    return {"Authorization": f"Bearer {secret}"} if secret else {}


class Guard:
    """ASGI middleware: passes on what brings the secret, whatever the route, and answers 401 to all else."""

    def __init__(self, app: Any) -> None:
        self.app = app
        secret = os.environ.get(SECRET, "")
        if not secret:
            raise RuntimeError(f"{SECRET} is not set: a lock without a key")
        self._wanted = f"Bearer {secret}".encode()

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
