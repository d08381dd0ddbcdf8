"""The parts of vLLM's interface that need GPUs or several servers: names, signatures, and what we send them."""

import inspect
import re
import shlex
from types import SimpleNamespace

import pytest
import torch

from siri.model.policy import load_policy
from siri.rollout.nccl import Fan, NcclTransfer, weight_source
from siri.rollout.vllm import SUPPORTED, check_version, installed, weights
from siri.runtime.ranks import ALONE
from tests.vllm.server import ROOT


def test_the_installed_version_is_supported():
    check_version(installed())
    assert installed().startswith("0.32.") and SUPPORTED == ">=0.32,<0.34"


def test_serve_script_is_parsed_by_vllm():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    text = (ROOT / "launch" / "serve.sh").read_text().replace("\\\n", " ")
    call = re.search(r"vllm serve (.*?) \"\$@\"", text).group(1)
    for variable, value in (
        ('"$MODEL"', "model"),
        ("$((${PORT:-8000} + gpu))", "8000"),
        ('"${CONTEXT:-17408}"', "17408"),
    ):
        call = call.replace(variable, value)
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", *shlex.split(call)])
    assert parsed.logprobs_mode == "processed_logprobs" and parsed.generation_config == "vllm"
    assert parsed.worker_extension_cls == "siri.rollout.worker.SyncWorker" and parsed.max_model_len == 17408
    assert "nccl" in str(parsed.weight_transfer_config)


def test_engine_options_on_a_gpu_are_vllms():
    from vllm.engine.arg_utils import EngineArgs

    from siri.config import Config
    from siri.rollout.colocated import engine_options
    from siri.rollout.engines import vllm_options

    options = vllm_options(Config(model="m"), 8, folder=None, context=131072, tied=True)
    assert (options.context, options.sequences) == (16384 + 1024, 256)
    known = inspect.signature(EngineArgs).parameters
    assert set(engine_options(options, gpu=True)) <= set(known)


@pytest.fixture
def transfer(models, monkeypatch):
    """A transfer whose far end is a recorder, for NCCL needs GPUs; everything up to NCCL is vLLM's own."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    calls = []

    class Sender:
        def __init__(self, init, client, source):
            self.client, self.source = client, source
            client.init_weight_transfer_engine({"rank_offset": 1, "world_size": init.world_size})

        def send_weights(self):
            self.client.start_weight_update()
            meta, sent = self.source.metadata(), list(self.source)
            assert [(update.name, update.dtype, update.shape) for update in meta] == [
                (n, t.dtype, tuple(t.shape)) for n, t in sent
            ]
            self.client.update_weights({"names": [name for name, _ in sent]})
            self.client.finish_weight_update()

    signature = inspect.signature(WeightTransferTrainerFactory.trainer_init)

    def trainer_init(init_info, *, client, source=None):
        signature.bind(init_info, client=client, source=source)
        return Sender(init_info, client, source)

    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", trainer_init)
    monkeypatch.setattr("siri.rollout.nccl._meeting_point", lambda url: ("127.0.0.1", 29501))
    policy = load_policy(str(models[False]), torch.device("cpu"))

    async def http(session, server, verb, path, body=None, *, timeout):
        calls.append((server.url, path, body))

    async def rpc(session, server, method, *arguments, timeout):
        calls.append((server.url, method, arguments))
        return [f"a process of {server.url}"] if method == "siri_process" else [{"sums": {}, "fused": {}}]

    async def settle(session, server, held, sums):
        calls.append((server.url, "settle", len(sums)))

    def do(work):
        import asyncio

        return asyncio.run(work(None))

    servers = [SimpleNamespace(url=f"http://n:{i}", fault="", workers=2) for i in range(3)]
    engine = SimpleNamespace(
        servers=servers, ranks=ALONE, dtype=torch.bfloat16, http=http, rpc=rpc, settle=settle, do=do, lose=None
    )
    engine.options = SimpleNamespace(sync_timeout_s=20.0)
    return policy, engine, NcclTransfer(engine, policy), calls


def test_nccl_reaches_every_worker_of_every_server(transfer):
    policy, engine, nccl, calls = transfer
    nccl.send(weights(policy, torch.bfloat16), "v1")
    offsets = {url: body["init_info"]["rank_offset"] for url, path, body in calls if "init_weight" in path}
    assert offsets == {"http://n:0": 1, "http://n:1": 3, "http://n:2": 5}
    assert {body["init_info"]["world_size"] for _, path, body in calls if "init_weight" in path} == {7}
    order = [path for url, path, _ in calls if url == "http://n:1"]
    assert order == [
        "siri_process",
        "siri_mark",
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "siri_present",
        "settle",
    ]
    calls.clear()
    engine.servers[2].fault = "gone"
    nccl.send(weights(policy, torch.bfloat16), "v2")
    assert [body["init_info"]["world_size"] for _, path, body in calls if "init_weight" in path] == [5, 5], (
        "a new group"
    )


def test_the_control_calls_are_vllms():
    """Fan stands where vLLM's own HTTP client would, so it has to have its methods."""
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient

    for name, method in inspect.getmembers(HTTPVLLMWeightSyncClient, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(Fan, name)).parameters
            assert list(ours) == list(inspect.signature(method).parameters), name


def test_a_weight_source_of_the_next_version():
    """vLLM 0.33's base class, reduced to what it asks of a source."""
    from abc import ABC, abstractmethod
    from functools import cached_property

    class Base(ABC):
        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            assert isinstance(cls.__dict__["metadata"], cached_property)

        @property
        @abstractmethod
        def metadata(self): ...

        def iter_full(self):
            raise NotImplementedError

    source = weight_source(Base, ["declared"])
    source.stream = iter([("a", 1)])
    assert source.metadata == ["declared"] and list(source.iter_full()) == [("a", 1)]
