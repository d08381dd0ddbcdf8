"""The settings of a training run, a section a subject: frozen dataclasses, filled from a recipe (TOML) and the command
line. What each setting may be and what becomes of it stands beside it (`siri.config.settings.Meaning`); a section's
`check` says what its settings cannot be together.

A key has one name everywhere: `l_max` in TOML and in config.json is `--l-max` on the command line. The first line of a
section's docstring is its heading in --help.
"""

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, cast

from siri.config.settings import Settings, setting
from siri.errors import InputError
from siri.schedule import Kind, LengthSchedule
from siri.sources import check_sources

Auto = Literal["auto"]
EXAMPLE = '{"enable_thinking": false}'
"""Of template_args."""


@dataclass(frozen=True)
class ModelSettings(Settings):
    """Model and data: what is trained, on which problems."""

    model: str = setting("", everyday=True)
    """Model to train: a folder, a hub name, or siri:demo/model for the one in the package."""
    data: tuple[str, ...] = setting((), everyday=True)
    """Training problems: .json, .jsonl, .csv, .parquet, .gz or .zst of these, folders, patterns, hub data sets, or
    siri:demo/train.jsonl; each perhaps with @train[:100], @problem,answer and @weight=2 (docs/data.md)."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Problems that repeat (the same prompt and answer): keep them, or drop all but the first of each."""
    data_changed: Literal["stop", "accept"] = setting("stop", free=True, machine=True)
    """What a resumed run does about other problems, another tokenizer or template than it was drawn from: stop before
    anything is written, or accept them. What is harmless (docs/data.md) goes on either way."""
    model_changed: Literal["stop", "accept"] = setting("stop", free=True, machine=True)
    """What a resumed run does about a model of the same name with other files than it began with: stop before anything
    is written, or accept it. The weights that go on are the checkpoint's."""

    def __post_init__(self) -> None:
        if isinstance(self.data, str):  # of older recipes and run folders
            object.__setattr__(self, "data", (self.data,))
        object.__setattr__(self, "data", tuple(filter(None, self.data)))
        super().__post_init__()

    def check(self) -> None:
        check_sources("data", self.data, weighted=True)


@dataclass(frozen=True)
class PromptSettings(Settings):
    """Prompts: how a row of data becomes what the model reads."""

    prompt_key: str = ""
    """Column of the problem's text or chat messages; empty = recognised (DeepScaleR, verl, question/answer)."""
    answer_key: str = ""
    """Column of the answer, dots for nesting (reward_model.ground_truth); empty = recognised."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """Prompt rendering: the tokenizer's chat template, or the plain text; auto = chat where there is a template."""
    template_args: str = ""
    """Variables of the chat template, as a JSON object: '{"enable_thinking": false}'."""
    instruction: str = ""
    """Text added to every problem that does not hold it already."""
    max_prompt_tokens: int = setting(1024, least=1)
    """Longer prompts are left out and counted."""

    def check(self) -> None:
        self.template_variables()

    def template_variables(self) -> dict[str, Any]:
        """template_args as they are handed to the template."""
        try:
            variables = json.loads(self.template_args or "{}")
        except ValueError as error:
            raise InputError(f"template_args is no JSON ({error}); give an object such as {EXAMPLE}") from None
        if not isinstance(variables, dict):
            raise InputError(f"template_args is {self.template_args!r}; give a JSON object such as {EXAMPLE}")
        if variables and self.template == "plain":
            raise InputError("template_args are of a chat template, but template is plain; leave one of them out")
        return variables


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """Schedule: the cap on the response length, step by step, and how long training goes on."""

    schedule: Kind = "cosine"
    """Shape of L(t): cosine, stair, stair_cosine, constant (l_max), steps (stages), or auto (docs/methods.md)."""
    l_max: int = setting(16384, everyday=True)
    """Longest cap on the response, tokens."""
    l_min: int = setting(8192, everyday=True)
    """Shortest cap on the response, tokens."""
    cycle: int = setting(640, everyday=True)
    """Steps in one cycle of compression and expansion (T)."""
    schedule_offset: int = 0
    """Steps into its cycle at which the schedule begins; 1 counts steps from 1, half a cycle puts expansion first."""
    auto_dwell: int = setting(40, least=3)
    """For schedule auto: steps over which lengths and accuracy are compared, the least of a phase."""
    stages: tuple[tuple[int, int], ...] = ()
    """For schedule steps: pairs of starting step and cap, as in --stages 0 8192 320 16384."""
    steps: int = setting(1920, least=1, free=True, everyday=True)
    """Training steps (rollout batches)."""
    epochs: float = setting(0.0, least=0, free=True)
    """Passes through the data, from which steps follow when it is read (at prompts_per_step a step); 0 = steps says."""
    train_tokens: int = setting(0, least=0, free=True)
    """Stop once this many response tokens were sampled, for comparisons at equal tokens; 0 = no limit."""

    def check(self) -> None:
        self.length_schedule()  # raises on a bad schedule

    def length_schedule(self) -> LengthSchedule:
        """The run's L(t)."""
        return LengthSchedule(self.schedule, self.l_max, self.l_min, self.cycle, self.stages, self.schedule_offset)


@dataclass(frozen=True)
class BatchSettings(Settings):
    """Batches: what is sampled in a step, and how it is cut into optimizer steps."""

    prompts_per_step: int = setting(128, least=1, everyday=True)
    """Prompts in a rollout batch."""
    group_size: int = setting(16, least=1, everyday=True)
    """Responses to each prompt (G)."""
    mini_batch_prompts: int = setting(64, least=1, everyday=True)
    """Most prompts in one optimizer step; a batch that it does not divide is cut evenly (65 into 33 and 32)."""
    temperature: float = setting(1.0, above=0)
    """Sampling temperature, the same in the loss."""
    dynamic_sampling: bool = False
    """Drop prompts whose responses are all right or all wrong, and sample others in their place (DAPO)."""
    dynamic_sampling_rounds: int = setting(8, least=1)
    """Most rollout rounds of a step under dynamic sampling; what is found by then is trained on."""
    staleness: int = setting(0, least=0, free=True)
    """Steps (k) that sampling may be ahead of training: the rollouts of step t begin once the weights after t - k steps
    are up, so that nobody waits (docs/async.md); 0 = in turn. Needs vLLM servers, or the embedded engine, and an
    importance correction."""
    allow_bias: bool = False
    """Let staleness train without an importance correction, for a comparison: what it refuses is what collapses."""


@dataclass(frozen=True)
class Workload:
    """What a rollout engine will be asked for."""

    model: str
    """Folder or hub name of the model that it samples from."""
    tokens: int
    """Longest prompt and response together."""
    cap: int
    """Longest response."""
    responses: int | None
    """Most responses asked for at once; None = as many as the engine likes."""
    temperature: float
    recurring: bool
    """The same prompts come again, so that the lengths of their responses are worth keeping."""
    offload: bool
    """The moments of the optimizer that works beside it live in host memory."""


@dataclass(frozen=True)
class RolloutSettings(Settings, ABC):
    """Rollout engine: who samples the responses, and with what."""

    rollout: Literal["auto", "local", "vllm"] = setting("auto", machine=True)
    """Rollout engine: local = embedded, on the model itself; vllm = vLLM in the same processes, or behind
    rollout_servers; auto = vllm where there are servers or GPUs with vLLM installed, else local, which on a GPU has to
    be asked for by name above a cap of 2,048 tokens."""
    rollout_servers: tuple[str, ...] = setting((), free=True, machine=True)
    """Addresses of `vllm serve` processes, such as http://node1:8000, which are sent the weights; none = vLLM runs in
    the same processes as everything else."""
    rollout_insecure: bool = setting(False, free=True, machine=True)
    """Also use servers on other nodes that let in whoever reaches them, which anybody there may give weights and
    commands; without it they have to ask for SIRI_ROLLOUT_SECRET."""
    rollout_memory: float | Auto = setting(0.6, above=0, below=1, free=True, machine=True)
    """Share of a GPU's memory for vLLM in the same processes while it samples; asleep it has next to none. auto = all
    that the memory plan leaves beside weights, moments and the reserve."""
    rollout_sync: Literal["auto", "nccl", "files"] = setting("auto", free=True, machine=True)
    """How weights reach the servers: nccl = vLLM's weight transfer; files = safetensors in rollout_sync_dir; auto =
    nccl where the trainer has GPUs and every server was started for it."""
    rollout_sync_dir: str = setting("", free=True, machine=True)
    """Folder that this machine and the servers see, for weights as files, each run's in a folder of its own; empty =
    rollout-weights in the run folder."""
    rollout_timeout_s: float = setting(120.0, above=0, free=True, machine=True)
    """Seconds without a new token after which a server counts as hanging, and for which a lost one is waited for."""
    rollout_sync_timeout_s: float = setting(600.0, above=0, free=True, machine=True)
    """Seconds that a server has to take over the weights."""
    rollout_tolerance: float | Auto = setting("auto", above=0, free=True, machine=True)
    """Mean gap of log-probs, nats, up to which an engine's answers prove that it holds the trainer's weights; auto =
    0.001 in fp32 and 0.1 in 16 bits."""
    rollout_tokens: int | Auto = setting("auto", least=1, free=True, machine=True)
    """Room for keys and values in the embedded engine, in tokens; as many rows run at once as fit at the step's cap."""

    @abstractmethod
    def workload(self) -> Workload:
        """What the engine will be asked for."""

    def check(self) -> None:
        servers = self.rollout_servers
        if not servers and (self.rollout_sync != "auto" or self.rollout_sync_dir):
            raise InputError("rollout_sync and rollout_sync_dir are for vLLM servers; name them with --rollout-servers")
        for url in servers:
            if "@" in url:  # it would be written to config.json, the report and loggers
                raise InputError(
                    f"rollout_servers: the address of {url.rpartition('@')[2]!r} holds a user or a password; leave it "
                    "out, and set SIRI_ROLLOUT_SECRET for the servers and the trainer (launch/serve.sh)"
                )
            if not re.fullmatch(r"https?://[^/\s?#]+(:\d+)?/?", url):
                raise InputError(f"rollout_servers: {url!r} is no address such as http://node1:8000")
        if self.rollout_insecure and not servers:
            raise InputError("rollout_insecure is for vLLM servers; name them with --rollout-servers, or leave it out")
        if len({url.rstrip("/") for url in servers}) < len(servers):
            raise InputError("rollout_servers names a server twice")
        if servers and self.rollout == "local":
            raise InputError("rollout is local, but rollout_servers names servers; leave one of them out")
        if self.rollout == "vllm" and self.rollout_tokens != "auto":
            raise InputError("rollout_tokens is for the embedded engine; vLLM fills --rollout-memory")


@dataclass(frozen=True)
class GradingSettings(Settings):
    """Grading: what says whether a response is right."""

    reward: str = setting("math", everyday=True)
    """math (docs/rewards.md), exact (string equality), or module:function taking (response, answer), which has to be
    given on the command line: a file alone chooses no code."""
    think: bool = True
    """Grade only the text after </think>; without the closing tag the reward is 0."""
    reward_workers: int = setting(4, least=1, free=True, machine=True)
    """Killable processes that grade."""
    reward_timeout_s: float = setting(10.0, above=0, machine=True)
    """Seconds that the grading of an answer may take. One that takes longer is tried once more, and then left out of
    the loss; in an evaluation it scores 0."""
    reward_memory_gb: float = setting(0.0, least=0, free=True)
    """Address space of each process that grades, GiB; 0 = 2 for math, no limit for a function of your own."""


@dataclass(frozen=True)
class AdvantageSettings(Settings):
    """Rewards and advantages: what is made of the scores of a prompt's responses."""

    overlong: Literal["zero", "mask", "soft", "grade"] = "zero"
    """Truncated responses: zero = reward 0, or what the worst of its group has, if that is less; mask = the same, and
    out of the loss; grade = graded as they are, where that is not right as the worst of the group; soft = graded, less
    DAPO's penalty on the last overlong_buffer tokens."""
    overlong_buffer: int = setting(4096, least=1)
    """Tokens before the cap over which the soft penalty grows to 0.5 (DAPO's 1 is for scores of -1 and 1)."""
    length_reward: Literal["none", "kimi", "l1_exact", "l1_max", "laser", "laser_d"] = "none"
    """A reward for length: kimi = Kimi k1.5's within a group, 0.5 for the shortest response to -0.5 for the longest, of
    which a wrong one gets only what is negative; l1_exact, l1_max, laser, laser_d = docs/methods.md."""
    length_weight: float = setting(1.0, least=0)
    """Weight of length_reward beside the reward itself."""
    advantage_norm: Literal["std", "none"] = "std"
    """Advantages over the group's standard deviation, or only centred (Dr. GRPO)."""


LOSS_DEFAULTS: dict[str, dict[str, float | str | None]] = {
    "grpo": {"clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean"},  # DAPO's, arXiv 2503.14476
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq_mean"},  # arXiv 2507.18071, section 5.1
    # arXiv 2506.13585 has no lower bound and does not print its upper one
    "cispo": {"clip_low": None, "clip_high": 0.28, "aggregation": "token_mean"},
}
"""What "auto" is, by the loss; the names of the losses mean it wherever they are used, so in siri_kernels, too."""
IMPORTANCE_CAPS = {"none": 2.0, "tis": 2.0, "icepop": 5.0}  # verl's threshold of TIS, and of its icepop preset
BY_NAME = (*LOSS_DEFAULTS["grpo"], "importance_cap")
"""The settings that may be "auto"."""


@dataclass(frozen=True)
class LossSettings(Settings):
    """Policy loss: what the kernels' operator takes.

    A setting at "auto" is what the loss means by its name (`by_name`); a value that a recipe has was given."""

    loss: Literal["grpo", "gspo", "cispo"] = "grpo"
    """Policy loss: token ratios (grpo), sequence ratios (gspo), clipped importance weights (cispo). What auto is in the
    settings below depends on it; a value that the recipe names is kept."""
    clip_low: float | Auto | None = setting("auto", least=0)
    """Ratios are clipped below 1 - clip_low; None = no lower bound; auto = 0.2 for grpo (DAPO), 0.0003 for gspo and
    None for cispo (their papers)."""
    clip_high: float | Auto | None = setting("auto", least=0)
    """Ratios are clipped above 1 + clip_high; None = no upper bound; auto = 0.28 for grpo (DAPO's clip-higher) and
    cispo, 0.0004 for gspo (its paper)."""
    dual_clip: float | None = None
    """Bound c of the term for negative advantages (verl uses 3); None = off."""
    aggregation: Literal["auto", "token_mean", "seq_mean", "seq_sum", "seq_mean_fixed"] = "auto"
    """How token terms become one number; seq_mean_fixed divides by the longest cap (Dr. GRPO); auto = token_mean for
    grpo (DAPO) and cispo, seq_mean for gspo."""
    importance: Literal["none", "tis", "icepop"] = "none"
    """Correction of the gap between rollout engine and trainer."""
    importance_low: float = setting(0.5, least=0)
    """Lower end of the icepop band."""
    importance_cap: float | Auto = setting("auto", above=0)
    """Cap of tis, upper end of the icepop band; auto = 2 for tis, 5 for icepop (verl)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""

    def __post_init__(self) -> None:
        """From here on no setting of the loss is "auto": whoever reads it, config.json among them, finds its value."""
        for name, value in self.by_name().items():
            if getattr(self, name) == "auto":
                object.__setattr__(self, name, value)
        super().__post_init__()

    def by_name(self) -> dict[str, float | str | None]:
        """What loss and importance stand for, where nothing else is given."""
        return {**LOSS_DEFAULTS[self.loss], "importance_cap": IMPORTANCE_CAPS[self.importance]}

    def check(self) -> None:
        low, cap = cast("float | None", self.clip_low), cast(float, self.importance_cap)
        if low is not None and low >= 1:
            raise InputError(f"clip_low is {low}; it must be below 1, since ratios are above 0, or None for no bound")
        if self.importance == "icepop" and self.importance_low > cap:
            raise InputError(
                f"importance_low is {self.importance_low}, above importance_cap {cap}: the icepop band is empty; lower "
                "--importance-low"
            )
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise InputError(f"dual_clip is {self.dual_clip}; it must be above 1 (verl uses 3)")


@dataclass(frozen=True)
class MemorySettings(Settings):
    """Memory and speed: how the work is laid out; what is learnt stays the same but for rounding."""

    token_budget: int | Auto = setting("auto", least=1, free=True, machine=True)
    """Most tokens of one packed micro-step; auto = what the machine holds."""
    cost_ratio: float | str = setting(1.6, free=True, machine=True)
    """Time of a FLOP of attention over that of one in the matrix products, for the packing plan: a number, or the file
    that siri bench calibrate wrote."""
    checkpointing: Literal["auto", "none", "selective", "full"] = setting("none", free=True, machine=True)
    """Activations recomputed in the backward: none, all but attention (selective), or all (full); auto = the first of
    these that the memory plan has room for on a GPU, none on a CPU."""
    attention: Literal["auto", "flash4", "flash3", "flash2", "varlen", "flex", "sdpa"] = setting("auto", free=True)
    """Attention of packed sequences: flash-attn 4, 3 or 2, torch's varlen or flex, or sdpa over blocks of like length;
    auto = the fastest that works here (see siri doctor)."""
    liger: Literal["auto", "on", "off"] = setting("auto", free=True)
    """Liger's kernels for RMSNorm, RoPE and SwiGLU; auto = on a GPU where liger-kernel is installed, those that fit the
    model and the versions here."""
    optimizer_offload: bool = setting(False, free=True)
    """Keep AdamW's moments in host memory; they visit the device, some parameters at a time, while a step is taken."""
    vocab_parallel: bool = setting(False, free=True)
    """Cut the lm_head by vocabulary rows over the ranks that share a model: each computes its rows' logits of the
    tokens of all of them."""
    sync_every_micro_step: bool = setting(False, free=True)
    """Reduce the gradients after every micro-step, not once an optimizer step: more traffic between the GPUs, but no
    sum of the whole model's gradients, 4 bytes a parameter, on each of them."""
    shard_across_nodes: bool = setting(False, free=True, machine=True)
    """On several nodes, shard the model over all GPUs; off = inside each node, replicated across nodes (HSDP)."""

    def check(self) -> None:
        if not isinstance(self.cost_ratio, str) and self.cost_ratio <= 0:
            raise InputError(f"cost_ratio is {self.cost_ratio}; it must be above 0, or a file of siri bench calibrate")


@dataclass(frozen=True)
class DeviceSettings(Settings):
    """Device, threads and seed."""

    device: str = setting("auto", free=True, machine=True)
    """cpu, cuda, or auto."""
    threads: int | Auto = setting("auto", least=1, most=1024, free=True, machine=True)
    """CPU threads of each process; auto = OMP_NUM_THREADS if that is set, else 1 for a small model or on a GPU, else
    the cores, shared among the ranks on a machine."""
    seed: int = setting(0, least=0, most=2**63 - 1, everyday=True)
    """Seed of sampling, and of the order of the data."""
