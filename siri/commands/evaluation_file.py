"""Files of `siri eval`: the answers so far of an evaluation that may be cut off, and the figures of the base."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri.data.content import digests
from siri.errors import InputError
from siri.store.jsonl import MetricsLog
from siri.text import say

if TYPE_CHECKING:
    from siri.data.prompts import PromptSet
    from siri.train.evaluate import Answers

NEW = {"template_args": "", "top_p": 1.0, "budgets": [], "ranks": 1}
"""What the files of older releases do not say."""


class Partial:
    """The answers so far, in a file beside the result: the same command continues where a kill cut it off.

    Problems are done in portions, each with seeds of its own, so that it does not matter where that was.
    """

    def __init__(
        self, path: Path | None, settings: Mapping[str, Any], sets: "Mapping[str, PromptSet]", *, problems: int
    ) -> None:
        """InputError when the file holds the answers of another evaluation, or of problems that changed since.
        settings: what the answers depend on. problems: of a portion."""
        self.problems = problems
        self.log = MetricsLog(path) if path else None
        self.rows: dict[tuple[str, int], Answers] = {}
        if not path or not self.log:
            return
        head = json.loads(json.dumps(dict(settings)))
        rows = b"".join(digest for prompts in sets.values() for digest in digests(prompts))
        head["problems_sha256"] = sha256(rows).hexdigest()
        known = self.log.rows() if path.exists() else []
        if known:  # an older release did not say which problems
            for key, value in {"problems_sha256": head["problems_sha256"], **NEW}.items():
                known[0].setdefault(key, value)
        if known and known[0] != head:
            differing = [key for key in head if known[0].get(key) != head[key]]
            raise InputError(
                f"{path} holds an evaluation that was cut off, with another {', '.join(differing)}; give the same "
                "settings to continue it, or delete it"
            )
        from siri.train.evaluate import Answers as Kept

        for row in known[1:]:
            responses = [(tokens, truncated) for tokens, truncated in row["responses"]]
            more = {key: row[key] for key in ("votes", "at_budgets") if key in row}
            self.rows[row["data"], row["start"]] = Kept(responses, row["rewards"], tuple(row["faults"]), **more)
        if known:
            say(f"continuing with {path}: {len(self.rows)} portions of {self.problems} problems are done")
        else:
            self.log.append(head)

    def known(self, data: str, start: int) -> "Answers | None":
        """The answers to the portion that starts there, if they are in the file."""
        return self.rows.get((data, start))

    def add(self, data: str, start: int, answers: "Answers") -> None:
        """Keep the answers to a portion."""
        if self.log:
            self.log.append({"data": data, "start": start, **asdict(answers)})

    def remove(self) -> None:
        """The result is written, so this is of no more use."""
        if self.log:
            self.log.path.unlink(missing_ok=True)


def differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Of each benchmark whose base was measured problem by problem, the paired difference of the accuracies."""
    from siri.train.evaluate import paired_difference

    by_benchmark = {}
    for name, figures in now.items():
        if held := before[name].get("right_by_problem"):
            shares = [
                [hit / evaluation["samples"] for hit in evaluation["right_by_problem"]]
                for evaluation in (figures, before[name] | {"right_by_problem": held})
            ]
            mean, half = paired_difference(*shares)
            by_benchmark[name] = {"accuracy": mean, "accuracy_half": half}
    return by_benchmark


def read_results(path: str, data: tuple[str, ...], cap: int) -> dict[str, Any]:
    """The base's results, which must be of the same benchmarks at the same cap: both figures depend on it."""
    try:
        row = json.loads(Path(path).read_bytes())
        keys = ("accuracy", "tokens_mean", "problems", "cap")
        more = ("samples", "right_by_problem")  # not in the files of older releases
        results = {
            name: {key: result[key] for key in keys} | {key: result[key] for key in more if key in result}
            for name, result in row["benchmarks"].items()
        }
        for figures in results.values():
            hits, samples = figures.get("right_by_problem"), figures.get("samples")
            if hits is not None and not (
                len(hits) == figures["problems"] and samples and all(0 <= hit <= samples for hit in hits)
            ):
                raise ValueError("right_by_problem is not of its problems and samples")
        model, protocol = row["model"], row.get("protocol", {})
        if not isinstance(protocol, dict):
            raise ValueError("its protocol is no object")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--base {path}: not a result file of siri eval --out ({type(error).__name__})") from None
    if results.keys() != set(data):
        raise InputError(f"--base {path} holds the benchmarks {', '.join(sorted(results))}; give --data the same names")
    if any(result["cap"] != cap for result in results.values()):
        raise InputError(f"--base {path} was measured at another cap than {cap}; measure both at the same --cap")
    return {"model": model, "benchmarks": results, "protocol": protocol}
