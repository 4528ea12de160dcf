"""The training loop: exact resume, the same result from any split of the work, and bad steps."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import files_below
from refusals import refusal
from torch import nn
from training_task import BATCH, COUNT, SETTINGS, Recorded, Regression, assert_same, deep_network, network

from sfd_cli import progress
from sfd_cli.data.order import EpochSampler
from sfd_cli.errors import SettingError, StageFailure
from sfd_cli.training.checkpoints import Checkpoints, TrainingState
from sfd_cli.training.fit import LoopResult, _batch
from sfd_cli.training.fit import fit as fit_model
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.throughput import Throughput, memory, training_flops


def fit(
    folder: Path,
    settings: LoopSettings = SETTINGS,
    task: Regression | None = None,
    model: nn.Module | None = None,
    **extra: Any,
) -> LoopResult:
    sampler = EpochSampler(COUNT, settings.batch_size, settings.seed)
    return fit_model(
        task or Regression(),
        model or network(),
        sampler,
        settings,
        folder / "checkpoints",
        folder / "log",
        torch.device("cpu"),
        "test",
        **extra,
    )


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    lines = (folder / "log" / "plots" / "metrics" / f"{name}.tsv").read_text().splitlines()[1:]
    return [(int(line.split("\t")[0]), float(line.split("\t")[1])) for line in lines]


def test_six_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS,
        steps=6,
        log_every=1,
        beta2=0.9,
        weight_decay=0.3,
        warmup_steps=2,
        decay="cosine",
        clip_norm=1.1,
        ema_decay=0.8,
    )
    task, model, sampler = Recorded(), network(), EpochSampler(COUNT, BATCH, settings.seed)
    result = fit(tmp_path, settings, task)

    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.9), weight_decay=0.3, foreach=False)
    falling = [(1 + math.cos(math.pi * part)) / 2 for part in (0.25, 0.5, 0.75)]
    rates = [1e-2 * factor for factor in (0.5, 1.0, 1.0, *falling)]
    losses, norms = [], []
    for step, rate in enumerate(rates):
        indices, flips = (torch.from_numpy(part) for part in sampler.batch(step))
        points = task.points[indices] * torch.where(flips == 1, -1, 1)[:, None]
        loss = nn.functional.mse_loss(model(points + task.drawn[step]), points) + 0.1
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.1).item())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
        average = [0.8 * old + 0.2 * new.detach() for old, new in zip(average, model.parameters(), strict=True)]

    assert min(norms) < 1.1 < max(norms), "clipping must act in some steps and rest in others"
    assert len({tuple(noise.flatten().tolist()) for noise in task.drawn}) == 6
    assert_same(model, result.model, 1e-6)
    assert result.ema is not None
    for expected, found in zip(average, result.ema.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for name, values in {"learning_rate": rates, "loss": losses, "gradient_norm": norms}.items():
        expected_curve = [(step, pytest.approx(value, rel=1e-5)) for step, value in enumerate(values, start=1)]
        assert curve(tmp_path, name) == expected_curve


class KilledError(Exception):
    """The end of a run between two checkpoints."""


def kill_at(last: int) -> Callable[[int, nn.Module], None]:
    def kill(step: int, model: nn.Module) -> None:
        if step == last:
            raise KilledError

    return kill


@pytest.mark.parametrize(("name", "value"), [("decay", 0.5), ("ema_warmup", True), ("optimizer", "muon")])
def test_a_run_cut_between_checkpoints_goes_on_to_the_same_bytes(tmp_path: Path, name: str, value: Any) -> None:
    settings = replace(SETTINGS, **{name: value})
    fit(tmp_path / "whole", settings, model=deep_network())
    with pytest.raises(KilledError):
        fit(tmp_path / "cut", settings, model=deep_network(), on_step=[kill_at(9)])
    fit(tmp_path / "cut", settings, model=deep_network())
    whole, cut, plain = (Checkpoints(tmp_path / run / "checkpoints").path(12) for run in ("whole", "cut", "plain"))
    assert len(list(whole.iterdir())) == 4  # weights, averages, optimiser state and their checksums
    for path in whole.iterdir():
        assert (cut / path.name).read_bytes() == path.read_bytes()
    fit(tmp_path / "plain", model=deep_network())
    assert (plain / "ema.safetensors").read_bytes() != (whole / "ema.safetensors").read_bytes()


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_n_steps_in_one_go_and_in_two_halves_give_the_same_weights(tmp_path: Path, cut: int) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "halves", replace(SETTINGS, steps=cut))
    halves = fit(tmp_path / "halves")
    assert_same(whole.model, halves.model)
    assert_same(whole.ema, halves.ema)
    states = [Checkpoints(tmp_path / run / "checkpoints").load(12).optimizer for run in ("whole", "halves")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_averaged_weights_are_validated_at_planned_checkpoints_and_at_the_end(tmp_path: Path) -> None:
    folder, seen = tmp_path / "validated" / "checkpoints", []

    def validate(model: nn.Module) -> dict[str, float]:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        seen.append((weights, Checkpoints(folder).steps()))
        return {"validation": float(len(seen))}

    fit(tmp_path / "validated", validate=validate)
    assert curve(tmp_path / "validated", "validation") == [(5, 1.0), (10, 2.0), (12, 3.0)]
    # The checkpoint comes after, so that one that is there has been validated.
    assert [steps for _, steps in seen] == [[], [5], [5, 10]]
    for step, (weights, _) in zip((10, 12), seen[1:], strict=True):
        ema = Checkpoints(folder).load(step).ema
        assert ema is not None
        assert all(torch.equal(ema[name], weights[name]) for name in weights)


def test_a_run_killed_between_validation_and_checkpoint_logs_each_step_once(tmp_path: Path) -> None:
    found = iter([1.0, 2.0, 3.0, 4.0])
    original = Checkpoints.save

    def save(checkpoints: Checkpoints, state: TrainingState) -> None:
        if state.step == 10:
            raise KilledError
        original(checkpoints, state)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Checkpoints, "save", save)
        with pytest.raises(KilledError):
            fit(tmp_path, validate=lambda model: {"validation": next(found)})
    assert curve(tmp_path, "validation") == [(5, 1.0), (10, 2.0)]
    fit(tmp_path, validate=lambda model: {"validation": next(found)})
    assert curve(tmp_path, "validation") == [(5, 1.0), (10, 3.0), (12, 4.0)]


def test_training_lowers_the_loss_and_the_average_lags_behind_the_weights(tmp_path: Path) -> None:
    result = fit(tmp_path, replace(SETTINGS, steps=150, log_every=10, clip_norm=None))
    losses = [value for _, value in curve(tmp_path, "loss")]
    assert losses[-1] < 0.8 * losses[0]
    assert result.ema is not None
    assert not torch.equal(result.ema[0].weight, result.model[0].weight)
    assert not any(parameter.requires_grad for parameter in result.ema.parameters())


def test_a_finished_run_is_loaded_and_not_trained_on(tmp_path: Path) -> None:
    first = fit(tmp_path)
    task = Regression()
    again = fit(tmp_path, task=task)
    assert task.fetched == 0
    assert_same(first.model, again.model)
    assert_same(first.ema, again.ema)


def test_fewer_steps_than_are_done_is_refused(tmp_path: Path) -> None:
    fit(tmp_path)
    with refusal(tmp_path / "checkpoints", 12, 6):
        fit(tmp_path, replace(SETTINGS, steps=6))


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path, accumulate: int) -> None:
    one = fit(tmp_path / "one")
    several = fit(tmp_path / "several", replace(SETTINGS, accumulate=accumulate))
    assert_same(one.model, several.model, 1e-6)
    for a, b in zip(curve(tmp_path / "one", "error"), curve(tmp_path / "several", "error"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_batch_that_does_not_split_evenly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as refused:
        fit(tmp_path, replace(SETTINGS, accumulate=3))
    assert refused.value.subject == "batch_size"


def test_a_step_with_a_loss_that_is_not_finite_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(SETTINGS, steps=3, checkpoint_every=1, ema_decay=None)
    spoiled = fit(tmp_path, settings, Regression(spoil=range(2, 3)))
    store = Checkpoints(tmp_path / "checkpoints")
    before = store.load(2)
    for name, tensor in before.model.items():
        assert torch.equal(spoiled.model.state_dict()[name], tensor)
    after = store.load(3).optimizer
    assert all(torch.equal(before.optimizer[name], after[name]) for name in after)
    assert "skipped 1 of the steps before 3" in capsys.readouterr().err


def test_skipped_steps_do_not_enter_the_logged_means(tmp_path: Path) -> None:
    fit(tmp_path, task=Regression(spoil=range(3, 5)))
    assert all(np.isfinite(value) for name in ("loss", "gradient_norm") for _, value in curve(tmp_path, name))


def test_ten_bad_steps_in_a_row_stop_the_run_and_leave_the_last_good_checkpoint(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=100)
    with refusal("test", 10, 17, tmp_path / "checkpoints" / "step-0000015", kind=StageFailure):
        fit(tmp_path, replace(settings, log_every=17), Regression(spoil=range(7, 100)))
    state = Checkpoints(tmp_path / "checkpoints").load(15)
    assert all(tensor.isfinite().all() for tensor in state.model.values())
    reached = fit(tmp_path / "good", replace(settings, steps=7, ema_decay=None))
    for name, tensor in state.model.items():
        assert torch.equal(reached.model.state_dict()[name], tensor)


def test_a_resume_drops_what_was_logged_beyond_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        fit(tmp_path, on_step=[kill_at(9)])
    assert [step for step, _ in curve(tmp_path, "loss")] == [3, 5, 6, 9]
    (tmp_path / "log" / "metrics.json").write_text('{"loss": ')
    fit(tmp_path)
    assert [step for step, _ in curve(tmp_path, "loss")] == [3, 5, 6, 9, 10, 12]
    fit(tmp_path / "whole")
    assert curve(tmp_path, "loss") == curve(tmp_path / "whole", "loss")


def test_every_term_and_the_speed_are_logged(tmp_path: Path) -> None:
    fit(tmp_path)
    names = {path.stem for path in (tmp_path / "log" / "plots" / "metrics").glob("*.tsv")}
    assert names == {"loss", "error", "gradient_norm", "learning_rate"}
    assert (tmp_path / "log" / "metrics.json").exists()
    speed = tmp_path / "timings" / "log" / "plots" / "metrics"
    assert {path.stem for path in speed.glob("*.tsv")} == {"images_per_second"}
    assert len((speed / "images_per_second.tsv").read_text().splitlines()) == 1 + len(curve(tmp_path, "loss"))


@pytest.mark.parametrize(
    ("processes", "accumulate", "said"),
    [(1, 1, "batch 64"), (8, 1, "batch 64 = 8 processes x 8"), (4, 2, "batch 64 = 4 processes x 2 micro-batches x 8")],
)
def test_the_first_line_tells_how_a_batch_is_shared(processes: int, accumulate: int, said: str) -> None:
    assert _batch(replace(SETTINGS, batch_size=64, accumulate=accumulate), processes) == said


def test_the_first_line_tells_the_steps_that_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, replace(SETTINGS, steps=5))
    fit(tmp_path, replace(SETTINGS, steps=7))
    lines = [line for line in capsys.readouterr().err.splitlines() if "batch" in line]
    assert lines == [f"sfd: test: steps {steps}, batch {BATCH}" for steps in ("1 to 5", "6 to 7")]


def test_two_runs_log_the_same_bytes_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "fast")
    ticks = itertools.count(step=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    fit(tmp_path / "slow")
    assert files_below(tmp_path / "fast" / "log") == files_below(tmp_path / "slow" / "log")
    assert files_below(tmp_path / "fast" / "timings") != files_below(tmp_path / "slow" / "timings")


def test_bf16_autocast_trains_float32_weights_on_a_cpu(tmp_path: Path) -> None:
    exact = fit(tmp_path / "exact")
    rough = fit(tmp_path / "rough", replace(SETTINGS, precision="bf16"))
    assert all(parameter.dtype == torch.float32 for parameter in rough.model.parameters())
    assert not torch.equal(rough.model[0].weight, exact.model[0].weight)
    assert_same(exact.model, rough.model, 0.02)


def test_flops_are_two_per_weight_forward_and_four_backward() -> None:
    flops = training_flops(lambda model: model(torch.empty(3, 5)), network)
    assert flops == 6 * 3 * (5 * 16 + 16 * 5)


def test_utilisation_is_the_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    speed = Throughput(flops_per_image=10, peak=200.0)
    now[0] = 3.0
    with speed.paused():
        now[0] = 103.0
    now[0] = 105.0
    assert speed.read(50) == {"images_per_second": 10.0, "mfu": 0.5}
    now[0] = 106.0
    assert speed.read(50) == {"images_per_second": 50.0, "mfu": 2.5}


def test_utilisation_is_left_out_where_the_peak_is_not_known() -> None:
    assert set(Throughput(10, None).read(1)) == {"images_per_second"}


SCRIPT = """
import sys, time
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_fit import SETTINGS, fit

folder, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
settings = replace(SETTINGS, steps=steps, checkpoint_every=2, log_every=5)
fit(folder, settings, on_step=[lambda step, model: (print(step, flush=True), time.sleep(pause))])
"""


def start(folder: Path, steps: int, pause: float) -> subprocess.Popen[str]:
    script = folder.parent / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    root = Path(__file__).parents[2]
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), str(steps), str(pause)]
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(step):
            return
    raise AssertionError(f"the run ended with {process.wait()} before step {step}")


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = start(folder, 1000, 0.05)
    wait_for_step(process, 7)
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    # Of the kept checkpoints the last may be of a step after the seventh: the kill takes a moment.
    assert Checkpoints(folder / "checkpoints").steps()[-1] >= 6
    settings = replace(SETTINGS, steps=14, checkpoint_every=2, log_every=5)
    assert_same(fit(tmp_path / "whole", settings).ema, fit(folder, settings).ema)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["term", "int"]
)
def test_a_signal_writes_a_checkpoint_and_ends_the_run(
    tmp_path: Path, number: signal.Signals, error: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        fit(
            tmp_path / "stopped",
            on_step=[lambda step, model: os.kill(os.getpid(), number) if step == 6 else None],
            validate=lambda model: {"validation": 1.0},
        )
    if number == signal.SIGTERM:
        assert raised.value.code == 143  # type: ignore[attr-defined]
    assert signal.getsignal(number) is before
    assert Checkpoints(tmp_path / "stopped" / "checkpoints").steps() == [5, 7]
    assert curve(tmp_path / "stopped", "validation") == [(5, 1.0)], "who is to stop has no time for it"
    assert_same(fit(tmp_path / "whole").ema, fit(tmp_path / "stopped").ema)


def rows(folder: Path) -> dict[str, str]:
    """Every curve, byte for byte, but for how fast it went."""
    files = [*(folder / "log" / "plots" / "metrics").glob("*.tsv"), folder / "log" / "metrics.json"]
    return {path.name: path.read_text() for path in files if path.name != "images_per_second.tsv"}


@pytest.mark.parametrize("stopped_in", range(1, 12))
def test_a_run_that_is_told_to_stop_and_goes_on_logs_the_rows_of_one_that_is_not(
    tmp_path: Path, stopped_in: int
) -> None:
    fit(tmp_path / "whole", task=Regression(spoil=range(6, 8)))

    def stop(step: int, model: nn.Module) -> None:
        if step == stopped_in:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(tmp_path / "stopped", task=Regression(spoil=range(6, 8)), on_step=[stop])
    done = Checkpoints(tmp_path / "stopped" / "checkpoints").steps()[-1]
    fit(tmp_path / "stopped", task=Regression(spoil=range(6 - done, 8 - done)))
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert len(rows(tmp_path / "whole")["loss.tsv"].splitlines()) == 1 + 6  # at 3, 5, 6, 9, 10 and 12


def test_a_stop_keeps_count_of_bad_steps_in_a_row(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=20, log_every=20, checkpoint_every=20)
    with pytest.raises(SystemExit):
        fit(
            tmp_path,
            settings,
            Regression(spoil=range(2, 20)),
            on_step=[lambda step, model: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None],
        )
    with refusal("test", kind=StageFailure) as failed:
        fit(tmp_path, settings, Regression(spoil=range(20)))
    assert "18 steps in a row" in failed.value.problem


def test_a_log_file_says_how_far_a_training_is_and_how_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    fit(tmp_path, replace(SETTINGS, steps=6, log_every=2))
    last = capsys.readouterr().err.splitlines()[-1]
    loss = curve(tmp_path, "loss")[-1][1]
    assert last.startswith("sfd: test: 6 of 6 in ")
    assert f"loss={loss:.4g}, images/s=" in last
    assert re.search(r"memory=[0-9.]+ GB$", last)


def test_memory_is_in_bytes() -> None:
    held = np.ones(300_000_000, np.uint8)
    assert held.nbytes < memory(torch.device("cpu")) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
