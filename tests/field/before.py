"""Tries the faults of README.md's map on the tree as it was: `python -m tests.field.before TREE [LINE ...]`.

TREE is a checkout of 29944d8, whose modules had other names. Each line runs in a process and a folder of its own and
prints what came out; README.md holds the outcomes beside the tests that keep them from coming back.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BEGIN = r"""
import dataclasses, json, os, shutil, sys
from pathlib import Path
from types import SimpleNamespace as NS
import numpy as np, torch
import siri, siri_kernels
assert all(module.__file__.startswith(os.environ["TREE"]) for module in (siri, siri_kernels)), siri.__file__
torch.manual_seed(0)
torch.set_num_threads(1)
HERE, CPU = Path.cwd(), torch.device("cpu")

def graded(gold, *answers, box="\\boxed{%s}"):
    from siri.rewards import math_reward
    for answer in answers:
        print(f"{gold} <- {answer}: {math_reward('</think> ' + box % answer, gold):g}")

def loaded(*rows, name="a.jsonl"):
    from siri.data import load_problems
    (HERE / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    tried(lambda: [(problem.prompt, problem.answer) for problem in load_problems(HERE / name).problems])

def tried(call):
    try:
        print(call())
    except SystemExit as error:
        print("exit", error.code)
    except Exception as error:
        print(f"{type(error).__name__}: {str(error)[:200]}".replace(str(HERE), ""))

def model(**settings):
    from tests.tiny import bpe_tokenizer, tiny_model
    folder = HERE / "model"
    tiny_model(**{"vocab_size": 700, **settings}).save_pretrained(folder)
    bpe_tokenizer(["what is a b c"]).save_pretrained(folder)
    return folder

def problems(count, name="p.jsonl"):
    (HERE / name).parent.mkdir(exist_ok=True)
    rows = [json.dumps({"problem": f"what is {i}", "answer": str(i)}) for i in range(count)]
    (HERE / name).write_text("\n".join(rows))
    return str(HERE / name)

def evaluated(folder, *data):
    from siri.cli import main
    tried(lambda: main(["eval", str(folder), "--data", *data, "--samples", "2", "--cap", "16"]))

def trained(folder, data, steps, *more):
    from siri.cli import main
    given = {"model": folder, "data": data, "l-max": 16, "l-min": 8, "steps": steps, "cycle": 2, "prompts-per-step": 2,
             "group-size": 2, "reward": "exact", "run-dir": HERE / "run", "lr": "1e-6"}
    arguments = [str(part) for key, value in given.items() for part in ("--" + key, value)]
    tried(lambda: f"exit {main(['train', 'siri-1.5b', *arguments, '--quiet', *more])}")

def claims_a_head_of_its_own(folder):
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
"""

LINES = {
    "A1": r"""
from siri.model import load_policy
from siri.rollout.local import local_engine
folder = model(tie_word_embeddings=True)
policy = load_policy(str(folder), CPU)
engine = local_engine(NS(model=str(folder), rollout_tokens=1000, optimizer_offload=False), policy, copy=True)
copy = next(value for value in vars(engine).values() if hasattr(value, "model"))
print("parameters trained, and of the engine's copy:", *(len(list(one.model.parameters())) for one in (policy, copy)))
""",
    "A2": r"""
from siri.cli import main
from siri.model import load_policy
from safetensors.torch import load_file
folder = model()
claims_a_head_of_its_own(folder)
loaded_head = load_policy(str(folder), CPU).model.lm_head.weight
in_file = load_file(folder / "model.safetensors")["lm_head.weight"]
print("the head that is trained is the file's:", torch.equal(loaded_head, in_file))
trained(folder, problems(6), 1)
main(["export", str(HERE / "run"), str(HERE / "out")])
print("the export has it:", "lm_head.weight" in load_file(HERE / "out" / "model.safetensors"))
""",
    "B3": r"""
graded("10^{-350}", "10^{-360}")
graded(r"\frac{1}{1500!}", r"\frac{1}{1501!}")
""",
    "B4": r'graded(r"\cos 60^\circ", "1/2", r"\cos 60")',
    "C5": r"""
graded("2/3", r"0.\overline{6}")
graded(r"0.\overline{6}", "2/3")
graded(r"\frac{611}{495}", r"1.2\overline{34}")
graded("1/3", r"0.\dot{3}")
""",
    "C6": r"""
for gold, answer in (("1/2", "½"), ("x^2", "x²"), (r"\sqrt{2}", "√2"), (r"\infty", "∞")):
    graded(gold, answer)
""",
    "C7": r"""
graded(r"(-\infty,1)\cup(3,\infty)", r"x<1\text{ or }x>3")
graded(r"\mathbb{R}", r"(-\infty,\infty)")
graded(r"\emptyset", r"\varnothing")
graded(r"\mathbb{R}\setminus\{2\}", r"(-\infty,2)\cup(2,\infty)")
""",
    "C8": r"""
graded("13/4", "3 1/4")
graded("-13/4", "-3 1/4")
""",
    "C9": r"""
for gold, answer in ((r"\frac{\pi}{3}", "pi/3"), ("e^2+1", "exp(2)+1"), ("x^2", "x**2"), (r"\infty", "oo")):
    graded(gold, answer)
""",
    "C10": r'graded("5", "**5**", r"\color{red}{5}", r"\underline{5}", r"\large 5")',
    "C11": r'graded("B", "(B) 12", "B. 12", r"\text{B: the second}")',
    "C12": r"""
graded(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left(\begin{array}{cc}1&2\\3&4\end{array}\right)",
       r"\begin{pmatrix}1&2\\[4pt]3&4\\\end{pmatrix}")
""",
    "C13": r"""
graded("3, 4", r"\boxed{3} and \boxed{4}", box="%s")
graded("5", r"\boxed 5", box="%s")
graded("17", "a+b=17")
""",
    "C14": r'graded("34", "Answer: 34", box="%s")',
    "D15": r"""
loaded(*(f'{{"problem":"P","answer":{number}}}' for number in ("0.00002", "1e22", "0.14285714285714285")))
graded("0.14285714285714285", r"\frac17")
""",
    "D16": r"""
answers = ("5", "proof", "notfound", "none", "nan", "n/a")
loaded(*({"problem": "P", "answer": answer} for answer in answers))
""",
    "D17": r"""
turns = [{"role": "user", "content": "P"}, {"role": "assistant", "content": "5"}]
loaded({"prompt": turns, "answer": "5"})
""",
    "D18": r"""
loaded({"prompt": json.dumps([{"role": "user", "content": "P"}]), "answer": "5"})
loaded({"prompt": [{"role": "user", "content": [{"type": "text", "text": "P"}]}], "answer": "5"})
""",
    "D19": r"""
import pyarrow as pa, pyarrow.parquet as pq
from decimal import Decimal
from siri.data import load_problems
pq.write_table(pa.table({"problem": ["P"], "answer": pa.array([Decimal("1.50")])}), HERE / "a.parquet")
tried(lambda: load_problems(HERE / "a.parquet").problems)
""",
    "E20": r"""
from siri.batch import _groups
from siri.config import Config
from siri.rollout import Completion, Request
config = Config(prompts_per_step=1, group_size=3, mini_batch_prompts=1, l_max=10, l_min=5, overlong="zero")
sampled = [Completion([7] * length, [-1.0] * length, length == 10) for length in (5, 5, 10)]
graded_as = NS(rewards=[1.0, -1.0, -1.0], timeouts=0, errors=0)
print("right, wrong, cut:", _groups(config, [Request([1], 10, 3)], [sampled], graded_as, 10)[0].rewards)
""",
    "E21": r"""
folder = model()
trained(folder, problems(6), 1)
shutil.copytree(HERE / "run", HERE / "begun")
for count, what in ((9, "more rows:"), (3, "fewer rows:")):
    shutil.rmtree(HERE / "run")
    shutil.copytree(HERE / "begun", HERE / "run")
    print(what)
    trained(folder, problems(count), 2, "--resume")
shutil.rmtree(HERE / "run")
shutil.copytree(HERE / "begun", HERE / "run")
print("the same content under another path:")
trained(folder, problems(6, "q.jsonl"), 2, "--resume")
""",
    "E22": r"""
sources = Path(siri.__file__).parent.rglob("*.py")
print("sources that say --no-think:", [path.name for path in sources if "--no-think" in path.read_text()])
""",
    "F23": r"evaluated(model(vocab_size=40), problems(2))",
    "F24": r'evaluated(model(), problems(2, "A/test.jsonl"), problems(2, "B/test.jsonl"))',
    "F25": r"""
from siri_kernels import FusedLMHead
from tests.tiny import tiny_model
network = tiny_model()
network.lm_head = FusedLMHead.of(network.lm_head)
tried(lambda: network.resize_token_embeddings(50, mean_resizing=False))
""",
    "F26": r"""
from siri.model import load_policy
(HERE / "adapter").mkdir()
(HERE / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
tried(lambda: load_policy(str(HERE / "adapter"), CPU))
""",
    "F27": r"""loaded('[{"problem": "P", "answer": "5"}]')""",
    "F28": r"""
from siri_kernels import linear_grpo_loss
ids, mask = torch.tensor([1, 2, -100, -100]), torch.tensor([True, True, False, False])
tried(lambda: linear_grpo_loss(torch.randn(4, 8), torch.randn(20, 8), ids, torch.ones(4), mask=mask))
""",
    "F29": r"""
from siri_kernels.integrations.liger import LigerFusedLinearGRPOLoss
tried(lambda: LigerFusedLinearGRPOLoss(loss_type="cispo", importance_sampling_level="sequence"))
""",
    "1": r"""
from siri.packing import default_cost, pack
generator = np.random.default_rng(0)
for ranks, giant, short, count in ((8, 17_400, (400, 800), 462), (64, 16_500, (1000, 5000), 800)):
    lengths = [giant, *map(int, generator.integers(*short, count))]
    cost = default_cost(np.array(lengths))
    elapsed = sum(map(max, pack(lengths, token_budget=36_864, ranks=ranks).costs))
    print(f"{ranks} ranks: {elapsed / max(cost.sum() / ranks, cost.max()):.3f} times the bound")
""",
    "2": r"""
from siri.dynamics import length_lag
caps, lags = 60 + 30 * np.cos(2 * np.pi * np.arange(192) / 24), []
for seed in range(40):
    generator, noise = np.random.default_rng(seed), [0.0]
    while len(noise) <= 192:
        noise.append(0.8 * noise[-1] + generator.normal())
    lags.append(length_lag(caps, 50 + np.array(noise[1:])))
print("noise without any effect has a lag in", sum(lag is not None for lag in lags), "of 40 runs")
""",
    "3": r"""
text = " ".join((Path(os.environ["TREE"]) / "studies/settle/README.md").read_text().split())
print(text[text.index("Clip-higher") :].split(":")[0])
""",
    "4": r"""
from siri_kernels import linear_grpo_loss, linear_logprob
hidden, weight, ids = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8), torch.randint(0, 20, (6,))
logp = linear_logprob(hidden, weight, ids).detach()
rollout = logp + torch.tensor([-5.0, 0, 0, 5, 0, 0])
options = {"cu_seqlens": torch.tensor([0, 3, 6]), "loss": "gspo", "importance": "icepop"}
linear_grpo_loss(hidden, weight, ids, torch.ones(2), old_logp=logp, rollout_logp=rollout, **options).loss.backward()
norms = hidden.grad.norm(dim=1)
print(f"gradients of the two tokens outside of the band: {float(norms[0]):.2f}, {float(norms[3]):.2f}")
""",
    "5": r"""
from siri.batch import soft_penalty
print("at the cap:", soft_penalty(10, 10, 4), "for scores of 0 and 1")
""",
    "6": r"""
from siri.timing import Stopwatch
from siri.update import update_policy
from tests.test_update import config, make_samples, tiny_policy
def weights(score_all):
    policy = tiny_policy()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2, weight_decay=0.1)
    idle = [dataclasses.replace(sample, advantage=0.0) for sample in make_samples(9)]
    settings = config(score_all=score_all)
    update_policy(policy, optimizer, [make_samples(8), idle], settings, watch=Stopwatch(CPU), token_budget=10**6)
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])
print(f"weights with score_all and without differ by {float((weights(True) - weights(False)).abs().max()):.4f}")
""",
    "7": r"""
from siri.batch import Group, make_samples
from siri.config import Config
from siri.rollout import Completion
group = Group([1], [Completion([7], [-1.0], False)] * 2, [0.0, 1.0], [0.0, 1.0], 0, 0, True)
config = Config(prompts_per_step=64, group_size=2, mini_batch_prompts=64, l_max=10, l_min=5)
print("prompts of 65 in each mini-batch:", [len(batch) // 2 for batch in make_samples(config, [group] * 65)])
""",
    "8": r"""
from siri.config import Config
gspo = Config(loss="gspo")
print("icepop ends at", Config().importance_cap, "; gspo has", gspo.clip_low, gspo.clip_high, gspo.aggregation)
tried(lambda: Config(loss="cispo", clip_low=None))
""",
    "9": r"""
page = (Path(os.environ["TREE"]) / "docs/paper.md").read_text().splitlines()
print(next(row for row in page if "Efficiency score" in row))
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path)
    parser.add_argument("line", nargs="*", choices=[[], *LINES], default=[])
    given = parser.parse_args()
    tree = given.tree.resolve()
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'kernels'}", "TREE": str(tree)}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    for line in given.line or LINES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-W", "ignore", "-c", BEGIN + LINES[line]]
            ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        said = [row for row in ended.stderr.splitlines() if row.startswith("siri: ")]
        failed = ended.stderr.splitlines()[-1:] if ended.returncode else []
        sys.stdout.write("\n".join([f"## {line}", ended.stdout.strip(), *said, *failed, ""]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
