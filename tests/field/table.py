"""Writes what math-verify says of the pairs in corpus.jsonl, beside our own verdict: `python -m tests.field.table`."""

import json
import logging
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent
CORPUS, TABLE = FOLDER / "corpus.jsonl", FOLDER / "table.md"


def rows() -> list[dict]:
    return [json.loads(line) for line in CORPUS.read_text().splitlines()]


def pairs(row: dict) -> list[tuple[str, str]]:
    """(gold answer, response) of one row: both ways, unless the row is marked or holds a whole response."""
    if "response" in row:
        return [(row["gold"], row["response"])]
    both_ways = [(row["gold"], f"\\boxed{{{row['answer']}}}")]
    return both_ways if row.get("one_way") else [*both_ways, (row["answer"], f"\\boxed{{{row['gold']}}}")]


def library_verdict(gold: str, response: str) -> int:
    """math-verify as its users call it: both texts parsed with the defaults, the gold answer in a box."""
    from math_verify import parse, verify

    return int(verify(parse(f"\\boxed{{{gold}}}"), parse(response)))


def our_verdict(gold: str, response: str) -> int:
    from siri.rewards import math_reward

    return int(math_reward(response, gold, think=False))


def cell(text: str) -> str:
    return "`` " + text.replace("\n", "⏎").replace("|", "\\|") + " ``"


def main() -> None:
    logging.disable(logging.CRITICAL)
    counts: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    lines = []
    for row in rows():
        for gold, response in pairs(row):
            ours, library = our_verdict(gold, response), library_verdict(gold, response)
            count = counts[row["score"], row["kind"]]
            for place, number in enumerate((1, ours, library)):
                count[place] += number
            lines.append(f"| {row['score']} | {ours} | {library} | {cell(gold)} | {cell(response)} |")
    total = [sum(count[place] for (score, _), count in counts.items() if score) for place in range(3)]
    wrong = [sum(count[place] for (score, _), count in counts.items() if not score) for place in range(3)]
    text = [
        f"# The corpus, graded here and by math-verify {version('math-verify')}",
        "",
        "Written by `python -m tests.field.table` from `corpus.jsonl`; `test_corpus.py` holds it to our own grader.",
        "A pair that is right is tried both ways, unless it is marked or a whole response.",
        "",
        "| expected | kind | pairs | paid here | paid by math-verify |",
        "|---|---|---|---|---|",
        *(f"| {score} | {kind} | {n} | {a} | {b} |" for (score, kind), (n, a, b) in counts.items()),
        f"| 1 | **all right answers** | {total[0]} | {total[1]} | {total[2]} |",
        f"| 0 | **all wrong answers** | {wrong[0]} | {wrong[1]} | {wrong[2]} |",
        "",
        "## Every pair",
        "",
        "| expected | here | math-verify | gold | response |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ]
    TABLE.write_text("\n".join(text))
    sys.stdout.write("\n".join(text[:12]) + "\n")


if __name__ == "__main__":
    main()
