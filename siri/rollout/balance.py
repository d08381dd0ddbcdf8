"""How fast servers write, and which responses a slow server hands on to a fast one."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

BALANCE_S = 5.0
"""How often the speeds of the servers are compared."""
SLOW = 3.0
"""So many times slower than the fastest, a server hands its responses on to it once it has room."""
KNOWN_S = 2.0
"""A speed is known from so many seconds on, summed over the responses that a server writes."""

Running = Mapping[Any, tuple[Any, Any]]
"""For each request in flight its response, and its server."""


class Balance:
    """What servers have written since they were last compared, and how fast they were then."""

    def __init__(self) -> None:
        self.tokens: Counter[Any] = Counter()
        self.busy_s: defaultdict[Any, float] = defaultdict(float)
        """Summed over the responses that a server writes."""
        self.speeds: dict[Any, float] = {}
        """Tokens per second of a response. Kept: a fast server that has nothing left to write is the one with room."""
        self._compared = perf_counter()

    def compare(self, running: Running, servers: Sequence[Any], share: int) -> tuple[set[Any], int, str] | None:
        """Whose responses others should take over, how many at most, and why; None where all may stay, or it is not
        time yet. servers: those in use, or waited for. share: most responses at once on each."""
        now = perf_counter()
        if now - self._compared < BALANCE_S:
            return None
        self._compared = now
        self.speeds |= {
            server: self.tokens[server] / seconds for server, seconds in self.busy_s.items() if seconds >= KNOWN_S
        }
        self.tokens.clear()
        self.busy_s.clear()
        speeds = {server: speed for server, speed in self.speeds.items() if not server.fault}
        load = Counter(server for _, server in running.values())
        fresh = (server for server in servers if not (server.fault or server in speeds or load[server]))
        if load and (server := next(fresh, None)):  # admitted when others had taken all; how fast it is will be seen
            most = max(load, key=lambda server: load[server])
            return {most}, load[most] // 2, f"{server.url} stood idle"
        if not speeds:
            return None
        fastest = max(speeds, key=lambda server: speeds[server])
        slow = {server for server, speed in speeds.items() if SLOW * speed < speeds[fastest]}
        return slow, max(0, share - load[fastest]), f"much slower than {fastest.url}"
