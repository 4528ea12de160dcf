"""Training on two machines of which one is lost, or the network between them: it goes on to the same weights."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from machines import INTERFACE, Machines, lacking, two_machines
from pipeline_project import environment
from safetensors.torch import load_file
from together import Member, free_port, kill, start
from training_project import NETWORK, PARAMS, project

from sfd_cli.cli import terminal
from sfd_cli.config import load_settings
from sfd_cli.distributed import meeting
from sfd_cli.distributed.processes import Processes
from sfd_cli.stages import train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why := lacking()), reason=why)]

PATIENCE = 5.0
STEPS, EVERY = 300, 20

Begin = Callable[..., list[Member]]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with two_machines() as both:
        yield both


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is trained, before it is."""
    root = tmp_path_factory.mktemp("original") / "project"
    project(root)
    network = NETWORK | {"steps": STEPS, "checkpoint_every": EVERY, "log_every": EVERY}
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"dit": network}))
    return root


def trained(processes: Processes) -> None:
    train.run(load_settings(Path("params.yaml")))


def begun(machines: Machines, root: Path, **options: str) -> list[Member]:
    """A process of `sfd train` on each of two machines, as srun would start them."""

    def prepare(rank: int) -> None:
        machines.enter(rank)
        os.chdir(root)
        meeting.MEETING, terminal.PATIENCE = 20.0, 1
        os.nice(5)  # so that who watches them sees every checkpoint

    return start(
        root.parent,
        trained,
        prepare=prepare,
        MASTER_ADDR=machines.address(0),
        LOCAL_RANK="0",
        SFD_PATIENCE=str(PATIENCE),
        **({"GLOO_SOCKET_IFNAME": INTERFACE} | options),
    )


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "project"))


@pytest.fixture
def begin(machines: Machines, root: Path) -> Iterator[Begin]:
    """Starts both processes; kills what is left of them, and mends the cable."""
    members: list[Member] = []

    def begin(**options: str) -> list[Member]:
        members[:] = begun(machines, root, **options)
        return members

    yield begin
    kill(members)
    machines.mend()


@pytest.fixture(scope="module")
def undisturbed(machines: Machines, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(original, tmp_path_factory.mktemp("undisturbed") / "project"))
    assert [member.end(300)[0] for member in begun(machines, root)] == [0, 0]
    return root


def weights(root: Path) -> dict[str, str]:
    """SHA-256 of model, average and checkpoints."""
    files = [*root.glob("models/dit/*.safetensors"), *root.glob("models/.checkpoints/dit/*/step-*/*.safetensors")]
    assert files
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def at_work(root: Path, logs: list[Path]) -> None:
    """Wait until there is a checkpoint, and see that there is more to do."""
    until = time.monotonic() + 240
    while not (steps := [path.name for path in root.glob("models/.checkpoints/dit/*/step-*")]):
        assert time.monotonic() < until, [log.read_text() for log in logs]
        time.sleep(0.01)
    assert f"step-{STEPS:07d}" not in steps, steps


def logs_of(members: list[Member]) -> list[Path]:
    return [member.log for member in members]


def test_a_cable_that_is_put_back_in_time_costs_nothing_but_time(
    machines: Machines, root: Path, begin: Begin, undisturbed: Path
) -> None:
    members = begin()
    at_work(root, logs_of(members))
    machines.cut()
    time.sleep(PATIENCE / 4)
    assert all(member.process.is_alive() for member in members)
    machines.mend()
    assert [member.end(240)[0] for member in members] == [0, 0], [member.log.read_text() for member in members]
    assert weights(root) == weights(undisturbed)


def test_a_cable_that_is_not_ends_both_in_time_with_what_is_gone_and_they_go_on(
    machines: Machines, root: Path, begin: Begin, undisturbed: Path
) -> None:
    members = begin()
    at_work(root, logs_of(members))
    machines.cut()
    began = time.monotonic()
    (first, told), (second, said) = (member.end(120) for member in members)
    assert time.monotonic() - began < 6 * PATIENCE
    assert (first, second) == (1, 1)
    assert "sfd: error: process 1 (machine-1) of 2: not heard of for 5 s" in told
    assert f"sfd: error: {machines.address(0)}:" in said
    assert "no answer for 5 s" in said
    assert [text.count("error:") for text in (told, said)] == [1, 1]
    machines.mend()
    assert [member.end(240)[0] for member in begin()] == [0, 0]
    assert weights(root) == weights(undisturbed)


@pytest.mark.parametrize("then", ["both", "one"])
def test_a_machine_that_dies_is_named_and_both_or_the_other_alone_go_on(
    then: str, machines: Machines, root: Path, begin: Begin, undisturbed: Path
) -> None:
    members = begin()
    at_work(root, logs_of(members))
    os.kill(members[1].process.pid or 0, signal.SIGKILL)
    code, said = members[0].end(120)
    assert code == 1
    assert "sfd: error: process 1 (machine-1): ended, or cannot be reached" in said
    assert "Traceback" not in said
    if then == "both":
        assert [member.end(240)[0] for member in begin()] == [0, 0]
        assert weights(root) == weights(undisturbed)
        return
    os.chdir(root)
    train.run(load_settings(Path("params.yaml")))
    found, expected = (load_file(where / "models/dit/model.safetensors") for where in (root, undisturbed))
    # The sums over a batch are taken in another order from there on.
    assert max((found[name] - expected[name]).abs().max().item() for name in expected) < 1e-5


def test_machines_that_see_each_other_by_no_name_are_told_of_the_interface(begin: Begin) -> None:
    began = time.monotonic()
    ends = [member.end(120) for member in begin(GLOO_SOCKET_IFNAME="lo")]
    assert time.monotonic() - began < 60
    assert {code for code, _ in ends} == {2}
    assert "GLOO_SOCKET_IFNAME" in ends[0][1]


def torchrun(root: Path, *arguments: str, inside: str | None = None) -> subprocess.Popen[bytes]:
    """`torchrun ... sfd train`, in a namespace where one is given."""
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, "-m", "sfd_cli", "train"]
    where = [] if inside is None else ["ip", "netns", "exec", inside]
    with open(root.with_name(f"{inside or 'torchrun'}.log"), "ab") as log:
        variables = environment(SFD_PATIENCE=str(PATIENCE), **({"GLOO_SOCKET_IFNAME": INTERFACE} if inside else {}))
        return subprocess.Popen(
            [*where, "nice", *command], cwd=root, env=variables, stdout=log, stderr=log, start_new_session=True
        )


def workers(agent: int) -> dict[int, int]:
    """The processes that a torchrun has started, by their rank."""
    found = {}
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        for variable in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"RANK="):
                found[int(variable[5:])] = int(child)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_max_restarts_bring_a_run_back_from_its_last_checkpoint_to_the_same_weights(
    number: signal.Signals, root: Path, undisturbed: Path
) -> None:
    agent = torchrun(root, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--shutdown-timeout", "20")
    try:
        at_work(root, [root.with_name("torchrun.log")])
        os.kill(workers(agent.pid)[1], number)
        assert agent.wait(300) == 0, root.with_name("torchrun.log").read_text()
    finally:
        agent.terminate()
        agent.wait(60)
    assert weights(root) == weights(undisturbed)
    first, again = re.findall(r"steps (\d+) to", root.with_name("torchrun.log").read_text())
    assert int(again) > int(first) == 1


def test_two_machines_become_one_by_themselves(machines: Machines, root: Path, undisturbed: Path) -> None:
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{machines.address(0)}:{free_port()}", "--rdzv-id", "x"]
    options = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "2", *place]
    agents = []
    try:
        for number, name in enumerate(machines.names):
            # A machine that is none has no name of its own, by which torchrun would know where to keep its store.
            conf = f"is_host={1 - number},last_call_timeout=5,keep_alive_interval=1"
            local = ["--local-addr", machines.address(number), "--rdzv-conf", conf]
            agents.append(torchrun(root, *options, *local, inside=name))
        log = root.with_name(f"{machines.names[0]}.log")
        at_work(root, [log])
        assert "2 processes" in log.read_text()
        for process in (*workers(agents[1].pid).values(), agents[1].pid):
            os.kill(process, signal.SIGKILL)
        assert agents[0].wait(300) == 0, log.read_text()
    finally:
        for agent in agents:
            agent.terminate()
            agent.wait(60)
    found, expected = (load_file(where / "models/dit/model.safetensors") for where in (root, undisturbed))
    assert max((found[name] - expected[name]).abs().max().item() for name in expected) < 1e-5
