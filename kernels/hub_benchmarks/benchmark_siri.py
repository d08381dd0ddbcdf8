"""`kernels benchmark`: log-prob with entropy, and the clipped loss with its backward, held to fp64, and the matrix
products that they cannot do without as workloads beside them (one, and three). The column of the reference is the time
of the check in fp64; the ratio to the matrix products is printed below each check."""

import sys

import torch
from kernels.benchmark import Benchmark

GPU_SHAPE, CPU_SHAPE = (8192, 1536, 151_936), (96, 32, 1031)
"""tokens, hidden size, vocabulary"""
SAMPLE = 64
"""rows of the forward that are compared with fp64"""
ROUNDS = 5
LOGP, ENTROPY, GRADIENT = 2e-5, 1e-4, 4e-3
"""largest error in nats of a log-prob and an entropy, relative one of a gradient; 1e-4 in fp32"""


class Head(Benchmark):
    seed = 0

    def setup(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():  # kernels goes by the build of torch
            print("no GPU is there: on the CPU, in fp32", file=sys.stderr)
            self.device = "cpu"
        gpu = self.device == "cuda"
        n, d, vocab = GPU_SHAPE if gpu else CPU_SHAPE
        dtype = torch.bfloat16 if gpu else torch.float32
        weight = torch.randn(vocab, d, device=self.device) * d**-0.5
        self.ids = torch.randint(vocab, (n,), device=self.device)
        likely = 16 * torch.rand(n, 1, device=self.device) * weight[self.ids]
        self.hidden = (torch.randn(n, d, device=self.device) + likely).to(dtype).requires_grad_()
        self.weight = weight.to(dtype).requires_grad_()
        self.advantages = torch.randn(n, device=self.device)
        # a sample, because [N, V] in fp64 does not fit
        self.rows = torch.linspace(0, n - 1, min(SAMPLE, n), device=self.device).long()
        self.chunk = min(n, 5632)
        self.logits = torch.empty(self.chunk, vocab, device=self.device, dtype=dtype)

    def products(self, backward: bool) -> None:
        x, w = self.hidden.detach(), self.weight.detach()
        for start in range(0, x.shape[0], self.chunk):
            part = x[start : start + self.chunk]
            dz = torch.mm(part, w.T, out=self.logits[: part.shape[0]])
            if backward:
                torch.mm(dz, w)
                torch.mm(dz.T, part)

    def benchmark_one_product(self) -> None:
        self.products(False)

    def benchmark_three_products(self) -> None:
        self.products(True)

    def benchmark_logprob_entropy(self) -> None:
        with torch.no_grad():
            scores = self.kernel.linear_logprob(self.hidden, self.weight, self.ids, return_entropy=True)
        self.out = torch.stack(scores)[:, self.rows]

    def verify_logprob_entropy(self) -> torch.Tensor:
        with torch.no_grad():
            z = self.hidden[self.rows].double() @ self.weight.double().T
            log_p = z.log_softmax(-1)
            logp = log_p.gather(1, self.ids[self.rows, None]).squeeze(1)
            exact = torch.stack([logp, -(log_p.exp() * log_p).sum(-1)])
        off = (self.out - exact).abs().amax(1)
        within("log-prob", off[0], LOGP)
        within("entropy", off[1], ENTROPY)
        if not hasattr(self, "told"):
            self.told = ratio("log-prob and entropy", self.benchmark_logprob_entropy, lambda: self.products(False))
        return exact.float()

    def benchmark_clipped_loss(self) -> None:
        self.hidden.grad = self.weight.grad = None
        result = self.kernel.linear_grpo_loss(self.hidden, self.weight, self.ids, self.advantages)
        result.loss.backward()
        self.out = self.hidden.grad[self.rows].float()

    def verify_clipped_loss(self) -> torch.Tensor:
        """dX of the sample, on policy: -A/N (onehot - p) W."""
        with torch.no_grad():
            w, n = self.weight.double(), self.ids.numel()
            p = (self.hidden[self.rows].double() @ w.T).softmax(-1)
            p[torch.arange(len(self.rows), device=p.device), self.ids[self.rows]] -= 1
            exact = (p * (self.advantages[self.rows, None].double() / n)) @ w
        limit = GRADIENT if self.hidden.dtype == torch.bfloat16 else 1e-4
        within("dX", (self.out - exact).norm() / exact.norm(), limit)
        if not hasattr(self, "told"):
            self.told = ratio("loss and gradients", self.benchmark_clipped_loss, lambda: self.products(True))
        return exact.float()


def within(what: str, error: torch.Tensor, limit: float) -> None:
    if not float(error) <= limit:
        raise RuntimeError(f"{what} is {float(error):.1e} off fp64, and {limit:.0e} is allowed")


def ratio(what: str, ours, products) -> float:
    """Median time of ours over that of its matrix products, in turn, in this process; printed."""
    import statistics
    import time

    def seconds(function) -> float:
        begin = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    pairs = [(seconds(ours), seconds(products)) for _ in range(ROUNDS)]
    value = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    print(f"  {what}: {value:.2f} x its matrix products", file=sys.stderr)
    return value
