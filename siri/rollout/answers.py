"""What rollout servers answer, read with suspicion: types and ranges are checked before anything is believed, and
whatever is no such answer is a `BadAnswer`.

A server may be another program than vLLM, one in the middle of a crash, or a stranger's: nothing that it sends may end
the run in a traceback, reach the loss as a number that it cannot use, or take the machine's memory.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from siri.errors import parse_json
from siri.rollout import Completion
from siri.rollout.dispatch import BadAnswer
from siri.rollout.vllm import Job
from siri.rollout.worker import Sum
from siri.text import printable

MOST_BYTES = 64 * 2**20
"""A longer answer is broken off."""
BYTES_OF_A_TOKEN = 1024
"""A completion takes at most so many for each token that was asked for, besides the first MiB."""
DTYPES = ("float32", "bfloat16", "float16")
MOST_WORKERS = 4096
_TOKENS_MADE = re.compile(r"^vllm:generation_tokens_total(?:\{.*\})? (\S+)", re.MULTILINE)


def completion_bytes(job: Job) -> int:
    """How long the answer to a job may be."""
    return 2**20 + BYTES_OF_A_TOKEN * job.max_tokens


def parsed(body: bytes, what: str) -> Any:
    """The JSON of an answer."""
    try:
        return parse_json(body)
    except ValueError:
        raise BadAnswer(
            f"{what} was answered with what is no JSON: {excerpt(body[:80].decode(errors='replace'))}"
        ) from None


def excerpt(value: Any) -> str:
    """The beginning of a value, on one line."""
    try:
        return printable(repr(value)[:80])
    except (ValueError, RecursionError):  # an int of more digits than Python prints
        return f"a {type(value).__name__}"


def table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswer(f"{what} is {excerpt(value)}, no object")
    return value


def array(value: Any, what: str, *, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise BadAnswer(f"{what} is {excerpt(value)}, no list of at most {most}")
    return value


def text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadAnswer(f"{what} is {excerpt(value)}, no text")
    return value


def whole_number(value: Any, what: str, *, least: int = 0, most: int = 2**62) -> int:
    if type(value) is not int or not least <= value <= most:
        raise BadAnswer(f"{what} is {excerpt(value)}, no whole number from {least} to {most}")
    return value


def real_number(value: Any, what: str, *, least: float, most: float) -> float:
    """A number within bounds, which NaN is not."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise BadAnswer(f"{what} is {excerpt(value)}, no number from {least:g} to {most:g}")
    return float(value)


def read_completion(answer: Any, job: Job, *, vocabulary: int) -> tuple[str, Completion]:
    """The model's name and the response of POST /v1/completions; every token is one of the model's, with the log-prob
    of a probability."""
    choice = table(_only(table(answer, "a completion").get("choices"), "choices"), "a choice")
    # at most what was asked for: whatever is longer is not looked at one by one
    tokens = array(choice.get("token_ids"), "token_ids", most=job.max_tokens)
    logp = array(table(choice.get("logprobs"), "logprobs").get("token_logprobs"), "log-probs", most=job.max_tokens)
    reason, counted = choice.get("finish_reason"), table(answer.get("usage"), "usage").get("completion_tokens")
    if reason not in ("stop", "length") or not tokens or not len(tokens) == len(logp) == counted:
        raise BadAnswer(
            f"{len(tokens)} tokens, {len(logp)} log-probs, {excerpt(counted)} counted, ended by {excerpt(reason)}"
        )
    if reason == "length" and len(tokens) != job.max_tokens:
        raise BadAnswer(f"cut after {len(tokens)} tokens under a cap of {job.max_tokens}")
    tokens = [whole_number(token, "a token", most=vocabulary - 1) for token in tokens]
    # rounding may bring a probability a little above 1; what is next to none is -inf in no sound softmax
    logp = [real_number(value, "a log-prob", least=-1e30, most=1e-4) for value in logp]
    return text(answer.get("model"), "the model"), Completion(tokens, logp, reason == "length")


class StreamReader:
    """Reads one response of POST /v1/completions that is streamed, as server-sent events."""

    def __init__(self, job: Job, model: str, vocabulary: int) -> None:
        self.job, self.model, self.vocabulary = job, model, vocabulary
        self.tokens = 0
        self.reason = ""
        self._begun = b""
        self._counted: int | None = None
        self._over = False

    def feed(self, piece: bytes) -> Iterator[tuple[list[int], list[float]]]:
        """The tokens and log-probs of each event that is whole with these bytes. BadAnswer for what is none."""
        *lines, self._begun = (self._begun + piece).split(b"\n")
        for line in lines:
            line = line.strip()
            if line == b"data: [DONE]":
                self._over = True
            elif line and not line.startswith(b":"):
                if self._over or not line.startswith(b"data: "):
                    raise BadAnswer(f"an event that is none: {excerpt(line[:80].decode(errors='replace'))}")
                yield from self._event(table(parsed(line[6:], "a completion"), "a completion"))

    def _event(self, event: dict[str, Any]) -> Iterator[tuple[list[int], list[float]]]:
        if "error" in event:
            raise BadAnswer(f"it failed: {excerpt(event['error'])}")
        if (model := text(event.get("model"), "the model")) != self.model:
            raise BadAnswer(f"it answered as {excerpt(model)} instead of {excerpt(self.model)}")
        if event.get("usage") is not None:
            counted = table(event["usage"], "usage").get("completion_tokens")
            self._counted = whole_number(counted, "completion_tokens", most=self.job.max_tokens)
        choices = array(event.get("choices"), "choices", most=1)
        if not choices:
            return
        choice = table(choices[0], "a choice")
        if self.reason:
            raise BadAnswer(f"it went on after a response that ended by {self.reason!r}")
        left = self.job.max_tokens - self.tokens
        said = choice.get("token_ids")
        tokens = [] if said is None else array(said, "token_ids", most=left)
        logp = (
            []
            if not tokens
            else array(table(choice.get("logprobs"), "logprobs").get("token_logprobs"), "log-probs", most=left)
        )
        if len(tokens) != len(logp):
            raise BadAnswer(f"{len(tokens)} tokens and {len(logp)} log-probs")
        tokens = [whole_number(token, "a token", most=self.vocabulary - 1) for token in tokens]
        logp = [real_number(value, "a log-prob", least=-1e30, most=1e-4) for value in logp]
        self.tokens += len(tokens)
        reason = choice.get("finish_reason")
        if reason is not None and reason not in ("stop", "length", "abort"):
            raise BadAnswer(f"ended by {excerpt(reason)}")
        stopped = bool(tokens) and tokens[-1] in self.job.stop_ids
        if any(token in self.job.stop_ids for token in tokens[:-1]) or stopped != (reason == "stop"):
            raise BadAnswer(f"it does not end where it should: {excerpt(tokens[-3:])}, ended by {excerpt(reason)}")
        if reason == "length" and self.tokens != self.job.max_tokens:
            raise BadAnswer(f"cut after {self.tokens} tokens under a cap of {self.job.max_tokens}")
        self.reason = reason or ""
        if tokens:
            yield tokens, logp

    def end(self) -> str:
        """Why the response ended; "abort" of one that was ended before its first token, of which nothing is said.
        BadAnswer where it just broke off."""
        if not self._over or self._counted != self.tokens:
            raise BadAnswer(f"it broke off after {self.tokens} tokens, of which {excerpt(self._counted)} were counted")
        if not self.reason and self.tokens:
            raise BadAnswer(f"it ended after {self.tokens} tokens and does not say why")
        return self.reason or "abort"


def read_results(answer: Any, method: str, *, workers: int) -> list[Any]:
    """What each worker of a server answered to a method of `SyncWorker`; workers: how many there are, 0 = not known."""
    results = array(table(answer, method).get("results"), f"{method}'s results", most=MOST_WORKERS)
    if not results or (workers and len(results) != workers):
        raise BadAnswer(f"{method} was answered by {len(results)} workers instead of {workers or 'one at least'}")
    return [parsed(text(result, method).encode(errors="replace"), method) for result in results]


def read_about(results: list[Any]) -> tuple[dict[str, Any], str, int]:
    """The model's config, the type of the weights and the room in the cache, of `siri_about`."""
    about = [table(result, "siri_about") for result in results]
    dtype = about[0].get("dtype")
    if dtype not in DTYPES:
        raise BadAnswer(f"it computes in {excerpt(dtype)} and not in {', '.join(DTYPES)}")
    return (
        table(about[0].get("model"), "model"),
        dtype,
        whole_number(about[0].get("cache_tokens"), "cache_tokens", least=1),
    )


def read_version(results: list[Any]) -> str | None:
    """The version of the weights that all workers hold; None if there is none, or not one."""
    versions = {None if result is None else text(result, "siri_version") for result in results}
    return versions.pop() if len(versions) == 1 else None


def read_held(results: list[Any]) -> list[dict[str, Any]]:
    """What each worker holds ("sums", "fused"), after `siri_present` or `siri_load`: the latter may also say that it
    sees no folder ("unseen") or that tensors arrived "damaged"."""
    held = []
    for result in results:
        row = table(result, "weights")
        if row.get("unseen") is True:
            held.append({"unseen": True})
            continue
        damaged = array(row.get("damaged", []), "damaged", most=10**6)
        sums = {
            name: [read_sum(block) for block in array(blocks, "checksums", most=100)]
            for name, blocks in table(row.get("sums"), "sums").items()
        }
        fused = {
            name: [text(part, "a fused tensor") for part in array(parts, "fused tensors", most=100)]
            for name, parts in table(row.get("fused"), "fused").items()
        }
        held.append({"damaged": [text(name, "a damaged tensor") for name in damaged], "sums": sums, "fused": fused})
    return held


def read_sum(entry: Any) -> Sum:
    """[checksum, rows, columns]."""
    total, rows, columns = _several(entry, "a checksum", 3)
    return [
        whole_number(total, "a checksum", most=2**64 - 1),
        whole_number(rows, "rows", most=2**40),
        whole_number(columns, "columns"),
    ]


def read_tokens_made(metrics: str) -> float | None:
    """How many tokens a server has sampled, of GET /metrics; None if it does not say."""
    figures = _TOKENS_MADE.findall(metrics)
    total = 0.0
    for figure in figures:
        try:
            total += float(figure)
        except ValueError:
            raise BadAnswer(f"it has sampled {excerpt(figure)} tokens") from None
    if not math.isfinite(total):  # NaN would differ from itself for ever, and a hang look like progress
        raise BadAnswer(f"it has sampled {total} tokens")
    return total if figures else None


def _only(value: Any, what: str) -> Any:
    return _several(value, what, 1)[0]


def _several(value: Any, what: str, count: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        raise BadAnswer(f"{what} is {excerpt(value)}, no list of {count}")
    return value
