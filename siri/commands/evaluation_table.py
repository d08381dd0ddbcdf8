"""What `siri eval` prints: the figures of a model, and those of several side by side."""

from collections.abc import Sequence
from typing import Any

from siri.data.places import short_names
from siri.text import printable


def results_table(row: dict[str, Any], base: dict[str, Any] | None) -> Any:
    """The figures of a model, beside those of a base where there is one."""
    from rich.markup import escape
    from rich.table import Table

    from siri.report.format import percent
    from siri.report.format import points as change_in_points

    figures = row["benchmarks"]
    best = max(next(iter(figures.values()))["pass_at_k"], key=int)
    voted = all(result.get("maj_at_k") for result in figures.values())
    headings = ["benchmark", "problems", f"avg@{row['samples']}", *(["points"] if base else []), f"pass@{best}"]
    headings += [f"maj@{best}"] if voted else []
    table = Table(*headings, title=escape(printable(row["model"])))

    short = short_names(figures)
    for name, result in figures.items():
        change = [change_in_points(result["accuracy"] - base["benchmarks"][name]["accuracy"])] if base else []
        accuracy = [with_interval(result), *change, percent(result["pass_at_k"][best])]
        accuracy += [percent(result["maj_at_k"][best])] if voted else []
        table.add_row(escape(printable(short[name])), str(result["problems"]), *accuracy)
    if base:
        score = row["efficiency_score"]
        table.caption = f"efficiency score against {escape(printable(base['model']))}: " + (
            "none, the base got nothing right somewhere" if score is None else f"{score:.2f}"
        )
        for name, difference in row["differences"].items():
            table.caption += f"\n{escape(printable(short[name]))}: {points(difference)}, problem by problem"
    return table


def lengths_table(row: dict[str, Any], base: dict[str, Any] | None) -> Any:
    """Response tokens: of all responses, of right and of wrong ones, and how many the cap cut."""
    from rich.markup import escape
    from rich.table import Table

    from siri.report.format import percent

    table = Table("benchmark", "tokens", *(["vs base"] if base else []), "right", "wrong", "truncated")
    short = short_names(row["benchmarks"])
    for name, result in row["benchmarks"].items():
        cells = [f"{result['tokens_mean']:,.1f}"]
        if base:
            before = base["benchmarks"][name]["tokens_mean"]
            cells.append(percent(result["tokens_mean"] / before - 1 if before else None, signed=True))
        cells += [_tokens(result["tokens_right_mean"]), _tokens(result["tokens_wrong_mean"])]
        table.add_row(escape(printable(short[name])), *cells, percent(result["truncation_rate"]))
    return table


def budgets_table(row: dict[str, Any]) -> Any:
    """Accuracy under several caps, from the same responses; None where only one was asked for."""
    from rich.markup import escape
    from rich.table import Table

    figures = row["benchmarks"]
    budgets = list(next(iter(figures.values()))["budgets"])
    if not budgets:
        return None
    budgets = [budget for budget in budgets if int(budget) < row["cap"]]  # the cap has the last column
    table = Table("benchmark", *(f"{int(budget):,}" for budget in budgets), f"{row['cap']:,}")
    table.title = "accuracy under a cap of so many tokens, from the same responses"
    short = short_names(figures)
    for name, result in figures.items():
        cells = [with_interval(result["budgets"][budget]) for budget in budgets]
        table.add_row(escape(printable(short[name])), *cells, with_interval(result))
    return table


def side_by_side(rows: Sequence[dict[str, Any]]) -> Any:
    """Several models on the same problems: each one's accuracy and tokens, and the difference to the first, paired
    problem by problem."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("benchmark", "model", f"avg@{rows[0]['samples']}", "against the first", "tokens")
    table.title = "side by side; differences are paired problem by problem, with 95 % intervals"
    models, benchmarks = short_names([row["model"] for row in rows]), short_names(rows[0]["benchmarks"])
    for name in rows[0]["benchmarks"]:
        for number, row in enumerate(rows):
            figures = row["benchmarks"][name]
            table.add_row(
                escape(printable(benchmarks[name])) if not number else "",
                escape(printable(models[row["model"]])),
                with_interval(figures),
                points(row["differences"][name]) if number else "",
                f"{figures['tokens_mean']:,.1f}",
                end_section=number == len(rows) - 1,
            )
    return table


def with_interval(figures: dict[str, Any]) -> str:
    """An accuracy with half the width of its 95 % interval."""
    from siri.report.format import percent

    within = figures.get("accuracy_half")  # evaluations of before have none
    return percent(figures["accuracy"]) + (f" ± {100 * within:.1f}" if within is not None else "")


def points(difference: dict[str, Any]) -> str:
    """A difference of accuracies with its interval."""
    within = "" if difference.get("accuracy_half") is None else f" ± {100 * difference['accuracy_half']:.1f}"
    return f"{100 * difference['accuracy']:+.1f}{within} points"


def _tokens(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
