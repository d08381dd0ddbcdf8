"""Two gloo processes: the vendored files of SkyRL and slime over shards of the vocabulary, against fp64 autograd
through whole logits; and, in SkyRL's case, with a softmax whose largest logit lies in the other shard."""

import ast
import importlib.util
import sys
import typing
from pathlib import Path

import torch
import torch.distributed as dist

N, D, V = 37, 9, 46


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def definitions(path: Path, *names: str) -> dict:
    """Those definitions of a trainer's file, without what the file imports."""
    body = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) in names]
    assert {node.name for node in body} == {*names}, f"{path.name} no longer has all of {names}"
    body = [*ast.parse("from __future__ import annotations").body, *body]
    scope = {"torch": torch, "dist": dist, "TypedDict": typing.TypedDict}
    exec(compile(ast.Module(body, []), str(path), "exec"), scope)
    return scope


def skyrls_own(module, rank: int, half: int, path: str) -> None:
    """The same as SkyRL's own back end of torch, in fp32."""
    names = "FusedLinearChunkedDistributedLogprob", "_compute_distributed_log_softmax"
    peer_head = definitions(Path(path), *names)[names[0]]
    g = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(1, N, D, generator=g), torch.randn(V, D, generator=g)
    target, upstream = torch.randint(V, (1, N), generator=g), torch.randn(1, N, generator=g)
    results = []
    for function in (peer_head, module.FusedLinearLogprobSiri):
        x, w = hidden.clone().requires_grad_(), weight[rank * half : (rank + 1) * half].clone().requires_grad_()
        logp = function.apply(x, w, target, rank * half, (rank + 1) * half, 8, dist.group.WORLD, False)
        (logp * upstream).sum().backward()
        results.append((logp.detach(), x.grad, w.grad))
    for theirs, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def skyrl(module, rank: int, half: int) -> None:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, N, D, generator=g, dtype=torch.float64).mul(3).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64)
    target, upstream = torch.randint(V, (1, N), generator=g), torch.randn(1, N, generator=g, dtype=torch.float64)
    shard = weight[rank * half : (rank + 1) * half].clone().requires_grad_()
    place = rank * half, (rank + 1) * half, 8, dist.group.WORLD
    logp = module.FusedLinearLogprobSiri.apply(hidden, shard, target, *place, False)
    (logp * upstream).sum().backward()
    dist.all_reduce(hidden.grad)  # what the column-parallel layer's own backward does
    whole_hidden, whole_weight = hidden.detach().clone().requires_grad_(), weight.clone().requires_grad_()
    exact = (whole_hidden @ whole_weight.T).log_softmax(-1).gather(-1, target[..., None]).squeeze(-1)
    (exact * upstream).sum().backward()
    torch.testing.assert_close(logp.detach(), exact.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hidden.grad, whole_hidden.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(shard.grad, whole_weight.grad[rank * half : (rank + 1) * half], rtol=1e-10, atol=1e-12)
    again = module.FusedLinearLogprobSiri.apply(hidden, shard, target, *place, True)
    assert not again.requires_grad and torch.equal(again, logp.detach())


def slime(module, rank: int, half: int) -> None:
    g = torch.Generator().manual_seed(1)
    whole = torch.randn(N, V, generator=g, dtype=torch.float64).mul(4)
    target = torch.randint(V, (N,), generator=g)
    upstream = torch.randn(2, N, generator=g, dtype=torch.float64)
    mask = torch.rand(N, V, generator=g) < 0.5
    columns = slice(rank * half, (rank + 1) * half)
    for keep in (None, mask):
        mine = whole[:, columns].clone().requires_grad_()
        kept = None if keep is None else keep[:, columns]
        logp, entropy = module.VocabParallelLogProbEntropy.apply(mine, target, kept, dist.group.WORLD, True, True)
        (logp.squeeze(1) * upstream[0] + entropy * upstream[1]).sum().backward()
        theirs = whole.clone().requires_grad_()
        allowed = theirs if keep is None else theirs.masked_fill(~keep.scatter(1, target[:, None], True), -torch.inf)
        exact = allowed.log_softmax(-1).gather(1, target[:, None])
        log_p = theirs.log_softmax(-1)
        exact_entropy = -(log_p.exp() * log_p).sum(-1)
        (exact.squeeze(1) * upstream[0] + exact_entropy * upstream[1]).sum().backward()
        torch.testing.assert_close(logp.detach(), exact.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(entropy.detach(), exact_entropy.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine.grad, theirs.grad[:, columns], rtol=1e-10, atol=1e-12)


if __name__ == "__main__":
    rank, (store, skyrl_file, slime_file, *skyrl_sources) = int(sys.argv[1]), sys.argv[2:]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    skyrl(load(skyrl_file), rank, V // 2)
    slime(load(slime_file), rank, V // 2)
    if skyrl_sources:
        skyrls_own(load(skyrl_file), rank, V // 2, skyrl_sources[0])
    dist.barrier()
    dist.destroy_process_group()
    print("ok")
