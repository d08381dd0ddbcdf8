"""The files that prime-rl, SkyRL and slime could vendor: what the script makes of the package, self-contained, exact in
fp64 on ragged inputs, the same in Triton's interpreter, over shards, and beside the trainers' own code where a checkout
of it lies in PREFIX/peers (PEERS below says under which name)."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import warm
from tests.support.vendored_worker import definitions, load

ROOT = Path(__file__).parents[2]
VENDOR = ROOT / "contrib" / "vendor"
PEERS = {
    "prime_rl": "prime-rl/src/prime_rl/trainer/models/layers/lm_head.py",
    "skyrl": "SkyRL/skyrl/backends/skyrl_train/distributed/megatron/model_utils.py",
    "slime": "slime/slime/utils/ppo_utils.py",
}
D, V = 12, 83
LENGTHS = [1, 7, 3, 19, 2]


@pytest.fixture(scope="module")
def bundle():
    sys.path.insert(0, str(VENDOR))
    try:
        yield importlib.import_module("bundle")
    finally:
        sys.path.remove(str(VENDOR))


NAMES = ("prime_rl", "skyrl", "slime")


@pytest.fixture(scope="module")
def files(bundle):
    pytest.importorskip("triton", reason="triton is not installed")
    return {name: load(str(bundle.FILES[name])) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_what_the_script_makes_of_the_package(bundle, name):
    assert bundle.FILES[name].read_text() == bundle.made(name), "python contrib/vendor/bundle.py writes it anew"


def test_a_stale_file_is_told(bundle, tmp_path):
    """The check that CI would run, on a copy in which a kernel of the package has changed since."""
    import shutil

    for folder in ("contrib", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "build"))
    command = [sys.executable, tmp_path / "contrib" / "vendor" / "bundle.py", "--check"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    source = tmp_path / "kernels" / "siri_kernels" / "rows" / "kernels.py"
    source.write_text(source.read_text().replace("WARPS = 8", "WARPS = 4"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("is not what it would be") == len(NAMES)
    assert subprocess.run(command[:-1], capture_output=True).returncode == 0
    assert "WARPS = 4" in (tmp_path / "contrib" / "slime" / "logprob_entropy.py").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_each_file_stands_alone(bundle, name):
    """It imports torch, triton and the standard library, and defines every name that it uses."""
    tree = ast.parse(bundle.FILES[name].read_text())
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch", "triton"}
    command = [sys.executable, "-m", "ruff", "check", "--select", "F", "--isolated", bundle.FILES[name]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def problem(seed: int, dtype=torch.float64):
    """Responses of ragged length side by side: [1, N]."""
    n = sum(LENGTHS)
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, n, D, generator=g, dtype=torch.float64).mul(2).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.randint(V, (1, n), generator=g)
    temperature = torch.repeat_interleave(torch.rand(len(LENGTHS), generator=g) + 0.5, torch.tensor(LENGTHS))[None]
    return hidden, weight, ids, temperature, torch.randn(2, 1, n, generator=g, dtype=torch.float64)


def exact(hidden, weight, ids, temperature=1.0):
    """The reference: fp64 autograd through all logits."""
    log_p = ((hidden.double() @ weight.double().T) / temperature).log_softmax(-1)
    return log_p.gather(-1, ids[..., None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk", [5, 8192])
def test_prime_rl_in_fp64(files, chunk, entropy):
    hidden, weight, ids, temperature, upstream = problem(0)
    head = files["prime_rl"].FusedOutputLinear(D, V, chunk_size=chunk)
    head.weight = torch.nn.Parameter(weight.detach())
    out = head(hidden, ids, temperature=temperature)
    logp, true_entropy = exact(hidden, weight, ids, temperature[..., None].double())
    torch.testing.assert_close(out["logprobs"], logp, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out["entropy"], true_entropy, rtol=1e-12, atol=1e-12)

    def loss(logp, h):
        return (logp * upstream[0]).sum() + ((h * upstream[1]).sum() if entropy else 0)

    ours = gradients(loss(out["logprobs"], out["entropy"]), hidden, head.weight)
    for mine, theirs in zip(ours, gradients(loss(logp, true_entropy), hidden, weight), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_prime_rl_of_bf16_keeps_fp32_log_probs(files):
    hidden, weight, ids, temperature, upstream = problem(1, torch.bfloat16)
    head = files["prime_rl"].FusedOutputLinear(D, V, chunk_size=9)
    head.weight = torch.nn.Parameter(weight.detach())
    out = head(hidden, ids, temperature)
    logp, _ = exact(hidden, weight, ids, temperature[..., None].double())
    assert out["logprobs"].dtype == torch.float32 and float((out["logprobs"] - logp).detach().abs().max()) < 2e-5
    ours = gradients((out["logprobs"] * upstream[0]).sum(), hidden, head.weight)
    for mine, theirs in zip(ours, gradients((logp * upstream[0]).sum(), hidden, weight), strict=True):
        assert mine.dtype == torch.bfloat16 and float((mine - theirs).norm() / theirs.norm()) < 1e-2


def test_prime_rl_wants_labels_and_temperatures(files):
    head = files["prime_rl"].FusedOutputLinear(D, V, chunk_size=9)
    with pytest.raises(ValueError, match="pass labels"):
        head(torch.zeros(1, 2, D))


def test_skyrl_in_fp64(files):
    hidden, weight, ids, _, upstream = problem(2)
    logp = files["skyrl"].FusedLinearLogprobSiri.apply(hidden, weight, ids, 0, V, 7, None, False)
    true_logp, _ = exact(hidden, weight, ids)
    torch.testing.assert_close(logp, true_logp, rtol=1e-12, atol=1e-12)
    ours = gradients((logp * upstream[0]).sum(), hidden, weight)
    for mine, theirs in zip(ours, gradients((true_logp * upstream[0]).sum(), hidden, weight), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="is no shard"):
        files["skyrl"].FusedLinearLogprobSiri.apply(hidden, weight, ids, 0, V - 1, 7, None, False)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("entropy", ["none", "value", "gradient"])
def test_slime_in_fp64(files, masked, entropy):
    hidden, weight, ids, _, upstream = problem(3)
    logits = (hidden @ weight.T)[0].detach().requires_grad_()
    before, target = logits.detach().clone(), ids[0]
    mask = torch.rand(logits.shape, generator=torch.Generator().manual_seed(4)) < 0.4 if masked else None
    switches = entropy != "none", entropy == "gradient"
    logp, value = files["slime"].VocabParallelLogProbEntropy.apply(logits, target, mask, None, *switches)
    allowed = logits if mask is None else logits.masked_fill(~mask.scatter(1, target[:, None], True), -torch.inf)
    true_logp = allowed.log_softmax(-1).gather(1, target[:, None])
    log_p = logits.log_softmax(-1)
    true_entropy = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(logp, true_logp, rtol=1e-12, atol=1e-12)
    assert value.shape == ((0,) if entropy == "none" else true_entropy.shape)
    assert value.requires_grad == (entropy == "gradient")
    mine, theirs = (logp.squeeze(1) * upstream[0, 0]).sum(), (true_logp.squeeze(1) * upstream[0, 0]).sum()
    if entropy != "none":
        torch.testing.assert_close(value, true_entropy, rtol=1e-12, atol=1e-12)
    if entropy == "gradient":
        mine, theirs = mine + (value * upstream[1, 0]).sum(), theirs + (true_entropy * upstream[1, 0]).sum()
    torch.testing.assert_close(*gradients(mine, logits), *gradients(theirs, logits), rtol=1e-10, atol=1e-12)
    assert torch.equal(logits.detach(), before), "the caller's logits are left as they were"


@pytest.mark.parametrize("name", NAMES)
def test_no_token_at_all(files, name):
    hidden, ids = torch.zeros(1, 0, D, requires_grad=True), torch.zeros(1, 0, dtype=torch.long)
    weight = torch.ones(V, D, requires_grad=True)
    if name == "slime":
        logits = hidden[0] @ weight.T
        logp, _ = files[name].VocabParallelLogProbEntropy.apply(logits, ids[0], None, None, True, True)
    elif name == "skyrl":
        logp = files[name].FusedLinearLogprobSiri.apply(hidden, weight, ids, 0, V, 4, None)
    else:
        head = files[name].FusedOutputLinear(D, V, chunk_size=4)
        head.weight = torch.nn.Parameter(weight.detach())
        logp, weight = head(hidden, ids, torch.ones(1, 0))["logprobs"], head.weight
    assert logp.numel() == 0 and not gradients(logp.sum(), weight)[0].any()


INTERPRETED = """
import sys, torch
from tests.contrib.test_vendored import problem, exact, gradients, D, V
from tests.support.vendored_worker import load
prime, skyrl, slime = (load(path) for path in sys.argv[1:])
assert prime.INTERPRETED
hidden, weight, ids, temperature, upstream = problem(5, torch.float32)
head = prime.FusedOutputLinear(D, V, chunk_size=9)
head.weight = torch.nn.Parameter(weight.detach())
out = head(hidden, ids, temperature)
logp, entropy = exact(hidden, weight, ids, temperature[..., None].double())
def same(mine, theirs): torch.testing.assert_close(mine.double(), theirs.double(), rtol=2e-4, atol=2e-5)
same(out["logprobs"], logp)
same(out["entropy"], entropy)
loss = lambda a, b: (a * upstream[0]).sum() + (b * upstream[1]).sum()
for pair in zip(gradients(loss(*out.values()), hidden, head.weight), gradients(loss(logp, entropy), hidden, weight)):
    same(*pair)
logp = skyrl.FusedLinearLogprobSiri.apply(hidden, weight, ids, 0, V, 9, None)
same(logp, exact(hidden, weight, ids)[0])
logits = (hidden @ weight.T)[0].detach().requires_grad_()
mask = torch.rand(logits.shape, generator=torch.Generator().manual_seed(4)) < 0.4
for keep in (None, mask):
    logp, entropy = slime.VocabParallelLogProbEntropy.apply(logits, ids[0], keep, None, True, True)
    wide = logits.detach().double().requires_grad_()
    allowed = wide if keep is None else wide.masked_fill(~keep.scatter(1, ids[0][:, None], True), -torch.inf)
    log_p = wide.log_softmax(-1)
    theirs = allowed.log_softmax(-1).gather(1, ids[0][:, None]), -(log_p.exp() * log_p).sum(-1)
    same(logp, theirs[0]), same(entropy, theirs[1])
    u = upstream[:, 0]
    mine = gradients((logp.squeeze(1) * u[0] + entropy * u[1]).sum(), logits)
    same(*mine, *gradients((theirs[0].squeeze(1) * u[0] + theirs[1] * u[1]).sum(), wide))
print("ok")
"""


def test_the_triton_kernels_compute_what_fp64_does(bundle):
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-c", INTERPRETED, *(str(bundle.FILES[name]) for name in NAMES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-3000:]


def test_over_two_shards_of_the_vocabulary(bundle, tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    files = [str(bundle.FILES[name]) for name in ("skyrl", "slime")]
    skyrl_sources = Path(sys.prefix) / "peers" / PEERS["skyrl"]
    files += [str(skyrl_sources)] if skyrl_sources.exists() else []
    command = [sys.executable, "-m", "tests.support.vendored_worker"]
    ranks = [
        warm.Popen(
            [*command, str(rank), str(tmp_path / "store"), *files],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, error = rank.communicate(timeout=300)
        assert rank.returncode == 0 and out == "ok\n", error[-3000:]


# beside the trainers' own code


def theirs(name: str, *names: str) -> dict:
    """Definitions of the trainer's own file; skips where no checkout is."""
    path = Path(sys.prefix) / "peers" / PEERS[name]
    if not path.exists():
        pytest.skip(f"no checkout of {name} at {path}")
    return definitions(path, *names)


def test_beside_prime_rls_own_head(files):
    scope = theirs(
        "prime_rl",
        "PrimeLmOutput",
        "FusedOutputLinear",
        "_SequenceChunkedLogProbEntropyFn",
        "_online_logsumexp_and_weighted_update",
    )
    hidden, weight, ids, temperature, upstream = problem(6, torch.float32)
    heads = [kind(D, V, chunk_size=8) for kind in (scope["FusedOutputLinear"], files["prime_rl"].FusedOutputLinear)]
    results = []
    for head in heads:
        assert list(inspect.signature(head.forward).parameters) == ["hidden_states", "labels", "temperature"]
        head.weight = torch.nn.Parameter(weight.detach().clone())
        out = head(hidden, ids, temperature=temperature)
        loss = (out["logprobs"] * upstream[0]).sum()
        results.append([out["logprobs"], out["entropy"], *gradients(loss, hidden, head.weight)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_beside_skyrls_own_back_end(files):
    scope = theirs("skyrl", "FusedLinearChunkedDistributedLogprob", "_fused_lm_head_logprob_apply")
    back_end = inspect.signature(scope["_fused_lm_head_logprob_apply"]).parameters
    ours = inspect.signature(files["skyrl"].FusedLinearLogprobSiri.apply).parameters
    assert [*back_end] == ["backend", *ours]
    parameters = inspect.signature(scope["FusedLinearChunkedDistributedLogprob"].forward).parameters
    assert [*parameters] == ["ctx", *ours]


@pytest.mark.parametrize("masked", [False, True])
def test_beside_slimes_own_function(files, masked):
    names = "_VocabParallelLogProbEntropy", "_maybe_all_reduce", "_get_vocab_parallel_rank_size"
    function = theirs("slime", *names)["_VocabParallelLogProbEntropy"]
    hidden, weight, ids, _, upstream = problem(7, torch.float32)
    mask = torch.rand(ids.shape[1], V, generator=torch.Generator().manual_seed(1)) < 0.5 if masked else None
    results = []
    for each in (function, files["slime"].VocabParallelLogProbEntropy):
        logits = (hidden @ weight.T)[0].detach().requires_grad_()
        logp, entropy = each.apply(logits, ids[0], mask, None, True, True)
        loss = (logp.squeeze(1) * upstream[0, 0] + entropy * upstream[1, 0]).sum()
        results.append([logp, entropy, *gradients(loss, logits)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
