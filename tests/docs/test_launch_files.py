"""The files of launch/, run with stand-ins for the programs of a cluster, or parsed by what will read them."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import parse_args

from siri import cli

LAUNCH = Path(__file__).parents[2] / "launch"
NOTES = """#!/usr/bin/env bash
line="$(basename "$0")$(printf ' %q' "$@")"
line+=" WAIT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-} IF=${GLOO_SOCKET_IFNAME:-},${NCCL_SOCKET_IFNAME:-}"
echo "$line VENV=${VIRTUAL_ENV:-}" >> "$CALLS"  # at once: two programs write side by side
"""
ANSWERS = {
    "torchrun": '[ -z "${STOPS:-}" ] || { [ "$STOPS" = no ] || echo 75 > "$SIRI_STOPPED"; exit 1; }',
    "scontrol": '[ "$1" = requeue ] || printf "node7\\nnode8\\n"',
    "srun": """while [[ $1 == --* ]]; do shift; done
[ "$1" = launch/node.sh ] || exec "$@"
[ -z "${SERVERS:-}" ] || until [ "$(grep -c DEVICE= "$CALLS")" = 2 ]; do sleep 0.1; done
[ -z "${LIMIT:-}" ] || { kill -USR1 $PPID; sleep 1; }
exec "$@\"""",
    "squeue": 'printf "41.0 serve\\n41.1 train\\n"',
    "scancel": "",
    "nvidia-smi": 'echo "$SMI"',
    "ip": '[[ "$*" == *"addr show to 10.0.0.7"* ]] || echo "10.0.0.7 dev ib0 src 10.0.0.8"',
    "getent": "echo 10.0.0.7 STREAM node7",
    "vllm": """echo "DEVICE=$CUDA_VISIBLE_DEVICES SECRET=${SIRI_ROLLOUT_SECRET:-}" >> "$CALLS"
[ "${BAD:-}" ] || exec sleep 600
echo "unknown option" >&2; exit 2""",
}
EIGHT = "\n".join(f"GPU {place}: NVIDIA H100 80GB HBM3 (UUID: GPU-{place})" for place in range(8))
MIG = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)
  MIG 3g.40gb     Device  0: (UUID: MIG-aaaa-1)
  MIG 3g.40gb     Device  1: (UUID: MIG-aaaa-2)"""
SET = ("NODES", "HEAD", "PORT", "GPUS", "NODE_RANK", "IFNAME", "CUDA_VISIBLE_DEVICES", "JOB", "SIRI_STOPPED", "VENV")
SET += ("MODEL", "SERVERS", "SERVER_PORT", "SERVER_GPUS", "SIRI_ROLLOUT_SECRET", "SIRI_ROLLOUT_SECRET_FILE")
SET += ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "VIRTUAL_ENV", "HOST")


@pytest.fixture
def cluster(tmp_path):
    """run(command, **environment): what it returned, what it said, and the calls of the stand-ins."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name, answer in ANSWERS.items():
        (programs / name).write_text(NOTES + answer + "\n")
        (programs / name).chmod(0o755)

    def run(*command: object, **changes: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        environment = {name: value for name, value in os.environ.items() if name not in SET}
        environment |= {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "SMI": "",
            **changes,
        }
        calls.write_text("")
        ran = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
        return ran, calls.read_text().splitlines()

    return run


def torchrun(calls: list[str]) -> tuple:
    """torchrun's own reading of what it was given, and the line of the call."""
    (line,) = [line for line in calls if line.startswith("torchrun ")]
    return parse_args(shlex.split(line)[1:-3]), line


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ({"SMI": EIGHT}, "8"),
        ({"SMI": EIGHT, "CUDA_VISIBLE_DEVICES": "0,1,5"}, "3"),
        ({"SMI": EIGHT, "CUDA_VISIBLE_DEVICES": ""}, "1"),
        ({"SMI": MIG, "CUDA_VISIBLE_DEVICES": "MIG-aaaa-1"}, "1"),
        ({"SMI": ""}, "1"),
        ({"SMI": EIGHT, "GPUS": "2"}, "2"),
    ],
)
def test_a_node_has_a_rank_for_each_device_that_it_may_use(cluster, changes, ranks):
    _, calls = cluster(LAUNCH / "node.sh", "demo", NODES="2", HEAD="127.0.0.1", **changes)
    assert torchrun(calls)[0].nproc_per_node == ranks


def test_instances_of_mig_do_not_train_together(cluster):
    refused, calls = cluster(LAUNCH / "node.sh", "demo", NODES="2", HEAD="127.0.0.1", SMI=MIG)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "MIG is on" in refused.stderr
    assert not any(line.startswith("torchrun") for line in calls)


def test_nodes_meet_where_the_platform_says_or_where_torchrun_does(cluster):
    options, line = torchrun(cluster(LAUNCH / "node.sh", "demo", NODES="2", HEAD="node7", JOB="41")[1])
    assert (options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id) == ("c10d", "node7:29500", "41")
    assert (options.nnodes, options.no_python, options.training_script) == ("2", True, "siri")
    assert "IF=ib0,ib0" in line, "the interface that leads to HEAD"
    ranked = {"NODE_RANK": "1", "PORT": "99", "IFNAME": "eth3", "NCCL_SOCKET_IFNAME": "ib"}
    options, line = torchrun(cluster(LAUNCH / "node.sh", "demo", NODES="2", HEAD="node7", **ranked)[1])
    assert (options.rdzv_backend, options.node_rank, options.master_addr, options.master_port) == (
        "static",
        1,
        "node7",
        99,
    )
    assert "IF=eth3,ib" in line, "what is set stays"
    said, calls = cluster(LAUNCH / "node.sh", "demo", NODES="2", HEAD="127.0.0.1")
    assert "IF=, " in torchrun(calls)[1] and not said.stderr


def test_a_node_that_was_stopped_ends_with_75_and_any_other_fault_with_torchruns(cluster):
    line = (LAUNCH / "node.sh", "demo")
    assert cluster(*line, NODES="1", HEAD="127.0.0.1")[0].returncode == 0
    assert cluster(*line, NODES="1", HEAD="127.0.0.1", STOPS="yes")[0].returncode == 75
    assert cluster(*line, NODES="1", HEAD="127.0.0.1", STOPS="no")[0].returncode == 1


def test_a_run_that_is_stopped_leaves_its_code_for_the_script(tmp_path, monkeypatch):
    told = tmp_path / "told"
    monkeypatch.setenv("SIRI_STOPPED", str(told))
    monkeypatch.setattr("siri.train.loop.train", lambda *_, **__: code)
    for code, said in ((0, False), (75, True)):
        assert cli.main(["train", "demo", "--run-dir", str(tmp_path / "run")]) == code
        assert told.exists() == said
    assert told.read_text() == "75\n"


# --- Slurm ---


def slurm(cluster, tmp_path, **changes: str):
    (tmp_path / "launch").symlink_to(LAUNCH)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("export VIRTUAL_ENV=activated\n")
    environment = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]"}
    environment |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "64", "SMI": EIGHT}
    return cluster("bash", LAUNCH / "slurm.sbatch", "siri-7b", "--run-dir", "/shared/run", **environment | changes)


def test_the_slurm_job_takes_whole_nodes_and_starts_the_same_line_on_each(cluster, tmp_path):
    asked = {
        option.partition("=")[0]: option.partition("=")[2]
        for option in re.findall(r"^#SBATCH --(\S+)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    }
    assert asked["nodes"] == "2" and asked["ntasks-per-node"] == "1" and asked["gpus-per-node"] == "8"
    assert "exclusive" in asked and int(asked["cpus-per-task"]) >= 8 and asked["mem"] == "0" and "requeue" in asked
    ran, calls = slurm(cluster, tmp_path)
    assert ran.returncode == 0, ran.stderr
    (srun,) = [line for line in calls if line.startswith("srun ")]
    assert "--nodes=2 --ntasks=2 --nodelist=node7\\,node8" in srun
    assert "--kill-on-bad-exit=1 --export=ALL --job-name=train --cpus-per-task=64 launch/node.sh" in srun
    options, line = torchrun(calls)
    assert (options.nnodes, options.nproc_per_node, options.rdzv_endpoint) == ("2", "8", "node7:29500")
    assert "siri train siri-7b --run-dir /shared/run --auto-resume" in line and "VENV=activated" in line
    named, grace = asked["signal"].split("@")
    assert named == "B:USR1" and 30 < int(line.split("WAIT=")[1].split()[0]) < int(grace), "before Slurm kills"


@pytest.mark.parametrize(
    ("changes", "code", "again"),
    [
        ({"STOPS": "yes", "LIMIT": "1"}, 75, True),
        ({"STOPS": "yes"}, 75, False),  # somebody has cancelled it
        ({"STOPS": "no", "LIMIT": "1"}, 1, False),
    ],
)
def test_a_job_goes_back_into_the_queue_when_its_time_is_up_and_its_state_saved(
    cluster, tmp_path, changes, code, again
):
    ran, calls = slurm(cluster, tmp_path, **changes)
    assert ran.returncode == code, ran.stderr
    assert any(line.startswith("scontrol requeue 41") for line in calls) == again
    assert any(line.startswith("scancel --signal=TERM 41.1 ") for line in calls) == ("LIMIT" in changes)
    assert not list(tmp_path.glob(".siri-stopped*"))


def test_one_slurm_job_has_servers_and_the_trainer(cluster, tmp_path):
    given = {"SERVERS": "1", "MODEL": "base/model", "SLURM_GPUS_ON_NODE": "2", "SIRI_ROLLOUT_SECRET": ""}
    ran, calls = slurm(cluster, tmp_path, **given, STOPS="yes", LIMIT="1")
    assert ran.returncode == 75, ran.stderr
    serve, train = sorted((line for line in calls if line.startswith("srun ")), key=lambda line: "name=train" in line)
    assert "--nodes=1 --ntasks=1 --nodelist=node8" in serve and "launch/serve.sh base/model" in serve
    assert "--nodes=1 --ntasks=1 --nodelist=node7" in train and "launch/node.sh siri-7b" in train
    options, line = torchrun(calls)
    assert (options.nnodes, options.rdzv_endpoint) == ("1", "node7:29500")
    assert "--rollout-servers http://node8:8000 http://node8:8001 --auto-resume" in line
    started = [line for line in calls if line.startswith("vllm serve base/model --host 0.0.0.0 --port 800")]
    assert len(started) == 2 and all("--middleware siri.rollout.guard.Guard" in line for line in started)
    secrets = {line.partition("SECRET=")[2] for line in calls if line.startswith("DEVICE=")}
    assert len(secrets) == 1 and re.fullmatch("[0-9a-f]{64}", secrets.pop())
    assert any(line.startswith("scancel --signal=TERM 41.1 ") for line in calls), "the servers go on meanwhile"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SERVERS": "2", "MODEL": "base/model"}, "SERVERS=2 leaves none of 2 nodes for training"),
        ({"SERVERS": "1"}, "name the model for the servers"),
    ],
)
def test_a_slurm_job_that_could_not_train_starts_nothing(cluster, tmp_path, changes, said):
    ran, calls = slurm(cluster, tmp_path, **changes)
    assert ran.returncode != 0 and said in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert not any(line.startswith(("srun", "vllm", "torchrun")) for line in calls)


# --- other platforms ---


def test_skypilots_task(cluster, tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["num_nodes"] == 2 and task["resources"] == {"accelerators": "H100:8"}
    assert set(task) <= {"name", "num_nodes", "resources", "workdir", "envs", "file_mounts", "setup", "run"}
    (tmp_path / "launch").symlink_to(LAUNCH)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("export VIRTUAL_ENV=activated\n")
    sky = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    sky["SKYPILOT_NODE_IPS"] = "10.0.0.7\n10.0.0.8"
    run = f"cd {tmp_path}\n{task['run']}"
    ran, calls = cluster("bash", "-c", run, **sky, **{name: str(value) for name, value in task["envs"].items()})
    assert ran.returncode == 0, ran.stderr
    options, line = torchrun(calls)
    assert (options.node_rank, options.master_addr, options.nproc_per_node) == (1, "10.0.0.7", "8")
    assert "siri train siri-7b --run-dir /shared/runs/siri-7b --auto-resume" in line and "VENV=activated" in line


def test_kubeflows_job(cluster):
    job = yaml.safe_load((LAUNCH / "kubeflow.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = job["spec"]["trainer"]
    assert (
        trainer["numNodes"] == 2
        and trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    )
    (pods,) = job["spec"]["podTemplateOverrides"]
    mounted = {mount["name"] for container in pods["spec"]["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pods["spec"]["volumes"]}
    (line,) = trainer["args"]
    pet = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "siri-node-0-0.siri", "PET_MASTER_PORT": "29500"}
    command = [*trainer["command"], line.replace("cd /siri", f"cd {LAUNCH.parent}")]
    ran, calls = cluster(*command, **pet, PET_NPROC_PER_NODE="8")
    assert ran.returncode == 0, ran.stderr
    options, line = torchrun(calls)
    assert (options.rdzv_backend, options.node_rank, options.master_addr) == ("static", 1, "siri-node-0-0.siri")
    grace = pods["spec"]["terminationGracePeriodSeconds"]
    assert int(line.split("WAIT=")[1].split()[0]) < grace


# --- servers ---


def test_a_bad_option_ends_the_servers_after_three_tries(cluster):
    began = time.monotonic()
    ran, calls = cluster(LAUNCH / "serve.sh", "model", "--no-such-option", GPUS="1", BAD="1", PAUSE_S="0.1")
    assert ran.returncode != 0 and time.monotonic() - began < 200, ran.stderr
    assert sum(line.startswith("vllm serve") for line in calls) == 3
    assert "ended three times soon after its start (exit code 2)" in ran.stderr and "unknown option" in ran.stderr


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"SMI": EIGHT, "GPUS": "2"}, ["0", "1"]),
        ({"SMI": EIGHT, "CUDA_VISIBLE_DEVICES": "4,6"}, ["4", "6"]),
        ({"SMI": MIG}, ["MIG-aaaa-1", "MIG-aaaa-2"]),
    ],
)
def test_a_server_for_each_device(cluster, tmp_path, changes, devices):
    environment = {name: value for name, value in os.environ.items() if name not in SET}
    environment |= {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    running = subprocess.Popen([LAUNCH / "serve.sh", "model"], env=environment | changes, start_new_session=True)
    try:
        for _ in range(600):
            calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
            if calls.count("DEVICE=") == len(devices):
                break
            time.sleep(0.1)
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)
    assert sorted(re.findall(r"DEVICE=(\S+)", calls)) == devices
