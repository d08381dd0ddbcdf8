"""The plan of a run as tables."""

from siri.errors import InputError
from siri.planning.gpus import GPUS, Gpu
from siri.planning.hours import (
    DECODE_SHARE,
    LAYER_S,
    MEDIAN_SHARE,
    PROMPT_TOKENS,
    SIGMA,
    Rates,
    RunHours,
)
from siri.planning.memory_plan import MemoryPlan

ENGINES = {
    "local": "the embedded engine",
    "colocated": "vLLM in the training processes",
    "served": "vLLM servers on other GPUs",
}


def print_plan(plan: MemoryPlan) -> None:
    """The plan as tables, with the verdict and what to change."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    config, machine = plan.config, plan.machine
    trained = f", frozen, and {plan.adapter:,} of a LoRA adapter," if plan.adapter else ""
    liger = f", with Liger's {' and '.join(plan.liger)}" if plan.liger else ""
    console.print(
        f"Each of {machine.gpus} GPU{'s' * (machine.gpus > 1)} of {machine.memory / 1e9:g} GB: {plan.parameters:,} "
        f"parameters{trained} in {plan.shards} shard{'s' * (plan.shards > 1)},\ncheckpointing {config.checkpointing}, "
        f"token budget {config.token_budget:,}{liger},\nrollouts from {ENGINES[plan.rollout]}."
    )
    for line in plan.chosen:
        console.print(line, markup=False)
    table = Table()
    table.add_column("during the update")
    table.add_column("GB", justify="right")
    peak = max(plan.moments, key=plan.moments.__getitem__)
    for name, size in (
        ("frozen weights, bf16, and adapter, fp32" if plan.adapter else "weights, fp32", plan.weights),
        ("gradients, fp32", plan.gradients),
        ("AdamW moments, fp32" + " (in host memory)" * config.optimizer_offload, plan.optimizer),
        ("gathered weights, bf16", plan.gathered),
        ("embedded engine's weights, bf16", plan.engine),
    ):
        table.add_row(name, _gb(size))
    table.add_section()
    for name, size in plan.moments.items():
        note = " (the largest counts)" if name == peak else ""
        table.add_row(f"+ at the {name}{note}", _gb(size), style="" if name == peak else "dim")
    table.add_section()
    table.add_row("peak of the update", _gb(plan.update_bytes), style="bold")
    table.add_row("held while sampling", _gb(plan.rollout_bytes))
    table.add_row("reserve", _gb(plan.reserve))
    console.print(table)
    if plan.accumulated:
        console.print(
            f"{_gb(plan.accumulated)} GB at head and backward: gradients in one piece until the last micro-step;\n"
            "--sync-every-micro-step goes without.",
            style="dim",
        )

    phases = Table()
    for heading in ("", "cap", "micro-step", "peak GB", "largest", "rollout cache", "at once"):
        phases.add_column(heading, justify="right" if heading else "left")
    for phase in plan.phases:
        figures = (phase.cap, phase.micro_step_tokens, _gb(phase.update_bytes), phase.largest_micro_step)
        figures += ("-" if plan.rollout == "served" else phase.cache_tokens, phase.sequences_in_flight)
        phases.add_row(phase.name, *(figure if isinstance(figure, str) else f"{figure:,}" for figure in figures))
    console.print(phases)
    for line in (
        "Lengths are in tokens. largest: the micro-step that would fill the memory.",
        f"rollout cache: keys and values, {plan.cache_token:,} bytes a token. at once: responses.",
        f"Attention is planned as {'varlen' if config.attention == 'auto' else config.attention} keeps it.",
        "A prediction, checked on fake tensors and with one step on a GPU, which took 7 % less (docs/plan.md).",
    ):
        console.print(line, style="dim")
    if plan.fits:
        console.print("[green]It fits.[/]")
    else:
        console.print("[red]It does not fit.[/] Any one of these is enough:")
        for line in plan.advice:
            console.print(f"  {line}", markup=False)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


def print_hours(hours: RunHours, plan: MemoryPlan, rates: Rates, mfu: float) -> None:
    """The hours as a table, with everything that was assumed beside it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table()
    for heading in ("a step at", "response tokens", "rollout s", "training s", "tokens/s a GPU"):
        table.add_column(heading, justify="left" if heading == "a step at" else "right")
    served = plan.rollout == "served"
    for name, step in hours.steps:
        figures = (f"{step.response_tokens / 1e6:.1f} M", f"{step.rollout_s:,.0f}", f"{step.train_s:,.0f}")
        speed = "-" if served else f"{step.tokens_per_s:,.0f}"
        table.add_row(f"{name} {step.cap:,}", figures[0], "-" if served else figures[1], figures[2], speed)
    console.print(table)
    digits = 0 if hours.total >= 100 else 2
    gpus = plan.machine.gpus
    parts = f"training {hours.training:,.{digits}f}" + ("" if served else f", rollout {hours.rollout:,.{digits}f}")
    console.print(
        f"[bold]{hours.total:,.{digits}f} GPU-hours[/] for {plan.config.steps:,} steps ({parts}),\n"
        f"{_time(hours.total / gpus)} on {gpus} GPU{'s' * (gpus > 1)}."
    )
    lines = [
        "Assumed, not measured:",
        f"  training at {mfu:.0%} MFU, {rates.flops / 1e12:,.0f} TFLOP/s a GPU (--assumed-mfu);",
        f"  responses lognormal, median {MEDIAN_SHARE} of the cap, sigma {SIGMA}, cut at the cap;",
        f"  prompts of {PROMPT_TOKENS} tokens;",
    ]
    if rates.tokens_per_s:
        lines.append(f"  sampling {rates.tokens_per_s:,.0f} tokens/s a GPU (--assumed-tokens-per-s);")
    elif not served:
        lines.append(
            f"  decoding reads weights, keys and values at {DECODE_SHARE:.0%} of {rates.bandwidth / 1e12:.2f} TB/s\n"
            "  (--assumed-tokens-per-s gives a speed instead);"
        )
        if plan.rollout == "local":
            lines.append(f"  the embedded engine in waves, and {1e3 * LAYER_S:g} ms a layer for each token;")
    left_out = "grading, weight sync, evaluations, checkpoints" + ", the servers' GPUs" * served
    for line in (*lines, f"  left out: {left_out}."):
        console.print(line, style="dim")


def _time(hours: float) -> str:
    """Days, or hours or minutes where there are few."""
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.0f} minutes"


def find_gpu(name: str) -> Gpu:
    """A GPU by name (see GPUS), or one of so many bytes of memory, such as 80e9, of which nothing else is known."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    try:
        size = int(float(name))
    except (ValueError, OverflowError):
        raise InputError(f"gpu {name!r} is unknown; use {', '.join(GPUS)}, or its bytes, such as 80e9") from None
    if size < 10**6:
        raise InputError(f"gpu {name!r}: {size} bytes of memory are too few; give bytes, such as 80e9")
    return Gpu(size, 132)
