"""Every setting of a training run: a frozen dataclass, filled from a recipe (TOML) and the command line.

A key has one name everywhere: `l_max` in TOML and in config.json is `--l-max` on the command line.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from siri.config.rules import read_rules
from siri.errors import InputError
from siri.schedule import Kind, LengthSchedule

Auto = Literal["auto"]
T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    model: str = ""
    """Model to train: a folder, a hub name, or siri:demo/model for the one in the package."""
    data: str = ""
    """Training problems: .json, .jsonl, .parquet, a hub data set, or siri:demo/train.jsonl."""
    prompt_key: str = ""
    """Column of the problem's text or chat messages; empty = recognised (DeepScaleR, verl, question/answer)."""
    answer_key: str = ""
    """Column of the answer, dots for nesting (reward_model.ground_truth); empty = recognised."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """Prompt rendering: the tokenizer's chat template, or the plain text; auto = chat where there is a template."""
    instruction: str = ""
    """Text added to every problem that does not hold it already."""
    max_prompt_tokens: int = 1024
    """Longer prompts are left out and counted."""

    schedule: Kind = "cosine"
    """Shape of the length schedule L(t): cosine, stair, stair_cosine, constant (l_max), or steps (stages)."""
    l_max: int = 16384
    """Longest cap on the response, tokens."""
    l_min: int = 8192
    """Shortest cap on the response, tokens."""
    cycle: int = 640
    """Steps in one cycle of compression and expansion (T)."""
    schedule_offset: int = 0
    """Steps into its cycle at which the schedule begins; 1 counts steps from 1, half a cycle puts expansion first."""
    stages: tuple[tuple[int, int], ...] = ()
    """For schedule steps: pairs of starting step and cap, as in --stages 0 8192 320 16384."""
    steps: int = 1920
    """Training steps (rollout batches)."""
    train_tokens: int = 0
    """Stop once this many response tokens were sampled, for comparisons at equal tokens; 0 = no limit."""

    prompts_per_step: int = 128
    """Prompts in a rollout batch."""
    group_size: int = 16
    """Responses to each prompt (G)."""
    mini_batch_prompts: int = 64
    """Prompts in one optimizer step (all of the batch, if it has fewer)."""
    temperature: float = 1.0
    """Sampling temperature, the same in the loss."""
    rollout: Literal["auto", "local", "vllm"] = "auto"
    """Rollout engine: local = embedded, on the trained model itself; vllm = vLLM in the training processes, or behind
    rollout_servers; auto = vllm where there are servers or GPUs with vLLM installed, else local."""
    rollout_servers: tuple[str, ...] = ()
    """Addresses of `vllm serve` processes, such as http://node1:8000; none = vLLM runs in the training processes."""
    rollout_memory: float = 0.6
    """Share of a GPU's memory for vLLM in the training processes while it samples; asleep it has next to none."""
    rollout_sync: Literal["auto", "nccl", "files"] = "auto"
    """How weights reach the servers: nccl = vLLM's weight transfer; files = safetensors in rollout_sync_dir; auto =
    nccl where the trainer has GPUs and every server was started for it."""
    rollout_sync_dir: str = ""
    """Folder that trainer and servers see, for weights as files, each run's in a folder of its own; empty =
    rollout-weights in the run folder."""
    rollout_timeout_s: float = 120.0
    """Seconds without a new token after which a server counts as hanging, and for which a lost one is waited for."""
    rollout_sync_timeout_s: float = 600.0
    """Seconds that a server has to take over the weights."""
    rollout_tolerance: float | Auto = "auto"
    """Mean gap of log-probs, nats, up to which an engine's answers prove that it holds the trainer's weights; auto =
    0.001 in fp32 and 0.1 in 16 bits."""
    rollout_tokens: int | Auto = "auto"
    """Room for keys and values in the embedded engine, in tokens; as many rows run at once as fit at the step's cap."""

    reward: str = "math"
    """math (math-verify), exact (string equality), or module:function taking (response, answer)."""
    think: bool = True
    """Grade only the text after </think>; without the closing tag the reward is 0."""
    reward_workers: int = 4
    """Killable processes that grade."""
    reward_timeout_s: float = 10.0
    """Seconds after which an answer that is still being graded scores 0."""
    reward_memory_gb: float = 0.0
    """Address space of each process that grades, GiB; 0 = 2 for math, no limit for a function of your own."""
    overlong: Literal["zero", "mask", "soft", "grade"] = "zero"
    """Truncated responses: zero = reward 0; mask = reward 0 and out of the loss; grade = graded as they are; soft =
    graded, less DAPO's penalty on the last overlong_buffer tokens."""
    overlong_buffer: int = 4096
    """Tokens before the cap over which the soft penalty grows to 1."""
    length_reward: Literal["none", "kimi"] = "none"
    """A reward for brevity within a prompt's group: kimi = Kimi k1.5's, 0.5 for the shortest response to -0.5 for the
    longest, of which a wrong one gets only what is negative."""
    length_weight: float = 1.0
    """Weight of length_reward beside the reward itself."""
    dynamic_sampling: bool = False
    """Drop prompts whose responses are all right or all wrong, and sample others in their place (DAPO)."""
    dynamic_sampling_rounds: int = 8
    """Most rollout rounds of a step under dynamic sampling; what is found by then is trained on."""

    loss: Literal["grpo", "gspo", "cispo"] = "grpo"
    """Policy loss: token ratios (grpo), sequence ratios (gspo), clipped importance weights (cispo)."""
    clip_low: float = 0.2
    """Ratios are clipped below 1 - clip_low."""
    clip_high: float = 0.28
    """Ratios are clipped above 1 + clip_high (clip-higher)."""
    dual_clip: float | None = None
    """Bound c of the term for negative advantages (verl uses 3); None = off."""
    aggregation: Literal["token_mean", "seq_mean", "seq_sum", "seq_mean_fixed"] = "token_mean"
    """How token terms become one number; seq_mean_fixed divides by the longest cap (Dr. GRPO)."""
    advantage_norm: Literal["std", "none"] = "std"
    """Advantages over the group's standard deviation, or only centred (Dr. GRPO)."""
    importance: Literal["none", "tis", "icepop"] = "none"
    """Correction of the gap between rollout engine and trainer."""
    importance_low: float = 0.5
    """Lower end of the icepop band."""
    importance_cap: float = 2.0
    """Cap of tis, upper end of the icepop band."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    score_all: bool = True
    """Also run responses whose advantage is zero, so that entropy and the like cover every token; off saves their
    compute and leaves the update as it is."""

    lr: float = 1e-6
    """Learning rate of AdamW, constant."""
    beta1: float = 0.9
    """AdamW's first decay."""
    beta2: float = 0.999
    """AdamW's second decay."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of an optimizer step."""
    token_budget: int | Auto = "auto"
    """Most tokens of one packed micro-step; auto = what the machine holds."""
    cost_ratio: float | str = 1.6
    """Time of a FLOP of attention over that of one in the matrix products, for the packing plan: a number, or the file
    that siri bench calibrate wrote."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations recomputed in the backward: none, all but attention (selective), or all (full)."""
    attention: Literal["auto", "flash4", "flash3", "flash2", "varlen", "flex", "sdpa"] = "auto"
    """Attention of packed sequences: flash-attn 4, 3 or 2, torch's varlen or flex, or sdpa over blocks of like length;
    auto = the fastest that works here (see siri doctor)."""
    liger: Literal["auto", "on", "off"] = "auto"
    """Liger's kernels for RMSNorm, RoPE and SwiGLU; auto = on a GPU where liger-kernel is installed, those that fit the
    model and the versions here."""
    optimizer_offload: bool = False
    """Keep AdamW's moments in host memory; they visit the device, some parameters at a time, while a step is taken."""
    vocab_parallel: bool = False
    """Cut the lm_head by vocabulary rows over the ranks that share a model: each computes its rows' logits of the
    tokens of all of them."""
    sync_every_micro_step: bool = False
    """Reduce the gradients after every micro-step, not once an optimizer step: more traffic between the GPUs, but no
    sum of the whole model's gradients, 4 bytes a parameter, on each of them."""
    shard_across_nodes: bool = False
    """On several nodes, shard the model over all GPUs; off = inside each node, replicated across nodes (HSDP)."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    seed: int = 0
    """Seed of data order and sampling."""

    save_every: int = 0
    """Steps between checkpoints besides those at the ends of phases; 0 = a quarter of a cycle."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept besides the named ones (siri-low-k, siri-high-k)."""
    keep_every: int = 0
    """Checkpoints after every so many steps are kept, too; 0 = none."""
    eval_every: int = 0
    """Steps between evaluations besides those at the ends of phases; 0 = only those."""
    eval_data: tuple[str, ...] = ()
    """Held-out problems; none = no evaluation."""
    eval_problems: int = 0
    """Evaluate on the first so many problems of each file; 0 = all."""
    eval_samples: int = 32
    """Samples of each problem (avg@k)."""
    eval_temperature: float = 0.6
    """Sampling temperature of evaluations."""
    eval_cap: int = 0
    """Cap of evaluations, tokens; 0 = the schedule's longest."""
    profile: int = -1
    """Step (from 0) of which a torch profiler trace is written to the run folder; -1 = none."""
    health: tuple[str, ...] = ()
    """What is done about numbers that go wrong, as case=action or case=action:K (the run ends at the K-th step in a
    row). Cases: nonfinite, ratio, entropy, reward, variance, truncation; actions: off, warn, skip (`judge`)."""
    ratio_limit: float = 1000.0
    """Probability ratio of a token above which the case `ratio` is there."""
    entropy_floor: float = 0.001
    """Mean entropy of a mini-batch, nats, below which the case `entropy` is there."""
    bundles: int = 2
    """Most post-mortem bundles of a run, each as large as a checkpoint."""
    logger: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """A logger beside metrics.jsonl, which is always written."""

    def __post_init__(self) -> None:
        self.length_schedule()  # raises on a bad schedule
        read_rules(self.health)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{field.name} is {value}; it must be a finite number")
        at_least_one = ["max_prompt_tokens", "steps", "prompts_per_step", "group_size", "mini_batch_prompts"]
        at_least_one += ["eval_samples", "reward_workers", "overlong_buffer", "dynamic_sampling_rounds"]
        at_least_one += ["keep_checkpoints"]
        not_negative = ["train_tokens", "save_every", "eval_every", "eval_problems", "eval_cap", "clip_low"]
        not_negative += ["keep_every", "reward_memory_gb", "entropy_floor", "bundles"]
        not_negative += ["length_weight", "clip_high", "weight_decay", "seed", "importance_low", "eval_temperature"]
        positive = ["temperature", "lr", "grad_clip", "reward_timeout_s", "importance_cap", "ratio_limit"]
        positive += ["rollout_timeout_s", "rollout_sync_timeout_s"]
        for names, holds, rule in (
            (at_least_one, lambda value: value >= 1, "at least 1"),
            (not_negative, lambda value: value >= 0, "0 or more"),
            (positive, lambda value: value > 0, "above 0"),
        ):
            for name in names:
                if not holds(getattr(self, name)):
                    raise InputError(f"{name} is {getattr(self, name)}; it must be {rule}")
        if not -1 <= self.profile < self.steps:
            raise InputError(
                f"profile is {self.profile}; it must be a step from 0 to {self.steps - 1}, or -1 for no trace"
            )
        if self.group_size == 1 and self.advantage_norm == "std":
            raise InputError(
                "group_size is 1: std-normalised advantages need at least 2 responses a prompt; raise --group-size or "
                "set --advantage-norm none"
            )
        if self.clip_low >= 1:
            raise InputError(f"clip_low is {self.clip_low}; it must be below 1, since ratios are above 0")
        if self.importance == "icepop" and self.importance_low > self.importance_cap:
            raise InputError(
                f"importance_low is {self.importance_low}, above importance_cap {self.importance_cap}: the icepop band "
                "is empty; lower --importance-low"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise InputError(f"dual_clip is {self.dual_clip}; it must be above 1 (verl uses 3)")
        if not isinstance(self.cost_ratio, str) and self.cost_ratio <= 0:
            raise InputError(f"cost_ratio is {self.cost_ratio}; it must be above 0, or a file of siri bench calibrate")
        for name in ("token_budget", "rollout_tokens"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 'auto' or at least 1")
        if self.rollout_tolerance != "auto" and self.rollout_tolerance <= 0:
            raise InputError(f"rollout_tolerance is {self.rollout_tolerance}; it must be 'auto' or above 0")
        if not self.rollout_servers and (self.rollout_sync != "auto" or self.rollout_sync_dir):
            raise InputError("rollout_sync and rollout_sync_dir are for vLLM servers; name them with --rollout-servers")
        check_rollout(self)

    def length_schedule(self) -> LengthSchedule:
        """The run's L(t)."""
        return LengthSchedule(self.schedule, self.l_max, self.l_min, self.cycle, self.stages, self.schedule_offset)

    def to_json(self) -> dict[str, Any]:
        """The settings as config.json holds them."""
        return json.loads(json.dumps(asdict(self)))


def check_rollout(options: Any) -> None:
    """InputError for rollout settings, of a Config or of `siri eval`, that contradict each other."""
    servers = options.rollout_servers
    for url in servers:
        if not re.fullmatch(r"https?://[^/\s]+(:\d+)?/?", url):
            raise InputError(f"rollout_servers: {url!r} is no address such as http://node1:8000")
    if len({url.rstrip("/") for url in servers}) < len(servers):
        raise InputError("rollout_servers names a server twice")
    if servers and options.rollout == "local":
        raise InputError("rollout is local, but rollout_servers names servers; leave one of them out")
    if not 0 < options.rollout_memory < 1:
        raise InputError(f"rollout_memory is {options.rollout_memory}; it must be above 0 and below 1")
    if options.rollout == "vllm" and options.rollout_tokens != "auto":
        raise InputError("rollout_tokens is for the embedded engine; vLLM fills --rollout-memory")
