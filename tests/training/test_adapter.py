"""`dit.adapter`: what is trained and kept of it, against `peft` itself, killed and resumed, and put together again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from model_loading import load_dit
from refusals import refusal
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from training_project import CLASSES, NETWORK, PARAMS, SEMANTIC, WIDTH, contents, project, settings_with

from sfd_cli.config import Adapter, DiT
from sfd_cli.errors import UserError
from sfd_cli.files import read_json, write_json
from sfd_cli.networks.adapters import adapter_numbers
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline
from sfd_cli.stages import train
from sfd_cli.stages.weights_export import export_anything
from sfd_cli.training.adapter import Adaptation
from sfd_cli.training.averages import EMA
from sfd_cli.training.checkpoints import Checkpoints, TrainingState
from sfd_cli.training.costs import Costs, step_memory
from sfd_cli.training.optimizers import optimizers_of
from sfd_cli.training.settings import transformer_loop
from sfd_cli.weights.models import open_model

RANK = 2
ADAPTER: dict[str, Any] = {"init": "base", "adapter": {"rank": RANK}}
MODEL = Path("models/dit")
ALONE = MODEL / "adapter"
LAYERS = ("modulation", "attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def with_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a transformer to start from, none of whose weights are zero."""
    root = tmp_path_factory.mktemp("adapters") / "project"
    project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train.run(settings_with(steps=2))
        MODEL.rename("base")
        shutil.rmtree("models/.checkpoints")
        torch.manual_seed(7)
        weights = load_file("base/ema.safetensors")
        save_file(
            {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in weights.items()}, "base/ema.safetensors"
        )
        for name in ("settings.json", ".settings.json", "model.safetensors"):
            (Path("base") / name).unlink()
    return root


@pytest.fixture
def root(with_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(with_base, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def adapted(*anew: str) -> tuple[LightningDiT, Adaptation]:
    """A network with the weights of `base` but for these modules, and fresh updates."""
    base = open_model("base", LightningDiT)
    network = base.load().requires_grad_()
    inherited = [name for name in network.state_dict() if not name.startswith(anew)]
    return network, Adaptation.of(Adapter(rank=RANK), network, base, inherited)


def inputs(count: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 5, 2, 2, generator=generator)
    times = torch.rand(2, count, generator=generator)
    return x, times[0], times[1], torch.arange(count) % (len(CLASSES) + 1)


def test_a_fresh_adapter_changes_nothing_and_leaves_the_base_frozen(root: Path) -> None:
    plain = load_dit(Path("base"))[0]
    network, _ = adapted()
    assert torch.equal(network(*inputs()), plain(*inputs()))
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    expected = {"class_embedding.weight"}
    expected |= {f"blocks.{b}.{layer}.lora_{m}.default.weight" for b in (0, 1) for layer in LAYERS for m in "AB"}
    assert trained == expected
    with torch.no_grad():
        network.blocks[0].mlp.down.lora_B["default"].weight.normal_()
    assert not torch.equal(network(*inputs()), plain(*inputs()))


def test_what_a_run_changes_is_of_low_rank_and_in_the_blocks_and_the_label_table_alone(root: Path) -> None:
    summary = train.run(settings_with(**ADAPTER))
    before, after = load_dit(Path("base"))[0].state_dict(), load_dit(MODEL)[0].state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"class_embedding.weight"} | {f"blocks.{b}.{layer}.weight" for b in (0, 1) for layer in LAYERS}
    for name in changed - {"class_embedding.weight"}:
        values = torch.linalg.svdvals((after[name] - before[name]).double())
        assert values[RANK] < 1e-2 * values[RANK - 1], name
    assert summary["parameters"] == sum(tensor.numel() for tensor in after.values())
    trained = load_file(ALONE / "adapter_model.safetensors")
    assert summary["trained"] == sum(tensor.numel() for tensor in trained.values())


def test_a_merged_weight_is_the_base_and_alpha_over_rank_times_both_factors(root: Path) -> None:
    train.run(settings_with(init="base", adapter={"rank": RANK, "alpha": 6.0}))
    before, after = load_dit(Path("base"))[0].state_dict(), load_dit(MODEL)[0].state_dict()
    tensors = load_file(ALONE / "adapter_model.safetensors")
    for block in (0, 1):
        for layer in LAYERS:
            name = f"blocks.{block}.{layer}"
            a, b = (tensors[f"base_model.model.{name}.lora_{factor}.weight"].double() for factor in "AB")
            assert a.shape[0] == b.shape[1] == RANK
            expected = before[f"{name}.weight"].double() + 3.0 * b @ a
            torch.testing.assert_close(after[f"{name}.weight"].double(), expected, rtol=0, atol=1e-7)
    assert torch.equal(after["class_embedding.weight"], tensors["base_model.model.class_embedding.weight"])
    assert read_json(ALONE / "adapter_config.json")["lora_alpha"] == 6.0


def test_peft_reads_the_adapter_on_the_base_and_gives_the_finished_model(root: Path) -> None:
    from peft import PeftModel

    train.run(settings_with(**ADAPTER))
    finished = load_dit(MODEL)[0]
    theirs = PeftModel.from_pretrained(load_dit(Path("base"))[0], str(ALONE)).eval()
    torch.testing.assert_close(theirs(*inputs()), finished(*inputs()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(load_dit(Path("base"))[0](*inputs()), finished(*inputs()), atol=1e-4)
    merged = theirs.merge_and_unload().state_dict()
    for name, tensor in finished.state_dict().items():
        assert torch.equal(merged[name], tensor), name


def test_the_folder_is_a_model_like_any_other_with_the_adapter_alone_in_it(root: Path) -> None:
    train.run(settings_with(**ADAPTER))
    files = {name for name in contents(MODEL) if not name.endswith("settings.json")}
    alone = {"adapter_config.json", "adapter_model.safetensors", "config.json"}
    assert files == {"config.json", "ema.safetensors", *(f"adapter/{name}" for name in alone)}
    model, kept_apart = open_model(MODEL, LightningDiT), open_model(ALONE, LightningDiT)
    assert kept_apart.facts == model.facts
    assert kept_apart.config == model.config
    ours, theirs = model.load().state_dict(), kept_apart.load().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert kept_apart.fingerprint != model.fingerprint

    noise = torch.randn(2, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    sampled = [
        SemanticFirstPipeline.from_checkpoints(source, device="cpu").sample_latents([0, 2], noise=noise, steps=3)
        for source in (MODEL, ALONE)
    ]
    assert torch.equal(*sampled)
    with refusal(MODEL, "model.safetensors"):
        open_model(MODEL, LightningDiT, weights="model").load()


def test_an_adapter_is_exported_as_the_model_that_it_makes(root: Path) -> None:
    train.run(settings_with(**ADAPTER))
    export_anything(MODEL, Path("model.pt"))
    assert export_anything(ALONE, Path("adapter.pt"))["kind"] == "LightningDiT"
    ours, theirs = (torch.load(f"{name}.pt", weights_only=True)["ema"] for name in ("model", "adapter"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


LATER: list[dict[str, Any]] = [
    {},
    {"optimizer": "muon", "holdout": 0.2, "ema_warmup": True, "precision": "bf16", "checkpoint_activations": True},
]


@pytest.mark.parametrize("section", LATER, ids=["plain", "with other settings"])
def test_equal_settings_give_equal_bytes_however_the_run_was_cut(root: Path, section: dict[str, Any]) -> None:
    train.run(settings_with(**ADAPTER, **section))
    whole = contents(MODEL)
    MODEL.rename("whole")
    for steps in (1, 5, 6):
        train.run(settings_with(**ADAPTER, **section, steps=steps))
    assert contents(MODEL) == whole


class KilledError(Exception):
    """A stand-in for a kill: nothing of the run comes after it."""


def test_a_run_that_is_killed_and_resumed_gives_the_bytes_of_one_in_one_go(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = ADAPTER | {"keep_every": 2, "checkpoint_every": 3}
    train.run(settings_with(**section))
    whole = contents(MODEL)
    MODEL.rename("whole")
    original = Checkpoints.save
    for step in (3, 6):

        def save(checkpoints: Checkpoints, state: TrainingState, step: int = step) -> None:
            if state.step == step:
                raise KilledError
            original(checkpoints, state)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save)
            with pytest.raises(KilledError):
                train.run(settings_with(**section))
    train.run(settings_with(**section))
    assert contents(MODEL) == whole


def test_a_checkpoint_has_the_adapter_alone_and_takes_what_is_planned(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_with(**ADAPTER)
    train.run(settings)
    (checkpoint,) = Path("models/.checkpoints/dit").glob("*/step-0000006")
    names = {f"blocks.{b}.{layer}.lora_{m}.default.weight" for b in (0, 1) for layer in LAYERS for m in "AB"}
    for file in ("model", "ema"):
        assert load_file(checkpoint / f"{file}.safetensors").keys() == names | {"class_embedding.weight"}
    # The project's latents and tokens are random ones: no encoder and no Semantic VAE of its settings made them.
    monkeypatch.setattr(Costs, "token_width", WIDTH)
    semvae = settings.semvae.model_copy(update={"channels": SEMANTIC})
    planned = Costs(settings.model_copy(update={"semvae": semvae}), 20, 3, 0).stages()["train"]
    held = sum(tensor.nbytes for path in checkpoint.glob("*.safetensors") for tensor in load_file(path).values())
    steps = 4 * (len(names) + 1)  # AdamW counts them for every tensor
    assert planned.checkpoint == held - steps
    left = [MODEL / "ema.safetensors", ALONE / "adapter_model.safetensors"]
    assert planned.bytes == sum(tensor.nbytes for path in left for tensor in load_file(path).values())


@pytest.mark.parametrize("adapter", [None, {"rank": 0}, {"rank": 0, "alpha": 4.0}])
def test_without_an_adapter_a_run_is_what_it_was_to_the_byte(root: Path, adapter: dict[str, Any] | None) -> None:
    train.run(settings_with(init="base"))
    whole = contents(MODEL)
    assert "adapter" not in read_json(MODEL / "settings.json")["settings"]
    assert {"model.safetensors", "ema.safetensors"} < whole.keys()
    MODEL.rename("whole")
    train.run(settings_with(init="base", adapter=adapter))
    assert contents(MODEL) == whole


def test_another_rank_is_another_model_and_the_one_before_is_put_aside(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(settings_with(**ADAPTER))
    before = contents(MODEL)
    train.run(settings_with(**ADAPTER))
    assert "up to date" in capsys.readouterr().err
    train.run(settings_with(init="base", adapter={"rank": 3}))
    assert "adapter" in capsys.readouterr().err
    (aside,) = Path("models").glob("dit.*")
    assert contents(aside) == before


def test_a_damaged_file_of_a_finished_run_is_made_again_from_its_checkpoint(root: Path) -> None:
    train.run(settings_with(**ADAPTER))
    whole = contents(MODEL)
    (ALONE / "adapter_model.safetensors").unlink()
    (MODEL / "ema.safetensors").write_bytes(b"damaged")
    train.run(settings_with(**ADAPTER))
    assert contents(MODEL) == whole


def test_milestones_are_adapters_of_runs_that_ended_there_and_models_like_any_other(root: Path) -> None:
    train.run(settings_with(**ADAPTER, keep_every=4))
    milestone = MODEL / "milestones" / "0000004"
    kept = contents(milestone)
    assert kept.keys() == {"adapter_config.json", "adapter_model.safetensors", "config.json", "checksums.json"}
    network = open_model(milestone, LightningDiT).load()
    shutil.move(MODEL, "six")
    shutil.rmtree("models/.checkpoints")
    train.run(settings_with(**ADAPTER, steps=4))
    assert {name: content for name, content in kept.items() if name != "checksums.json"} == contents(ALONE)
    finished = load_dit(MODEL)[0].state_dict()
    assert all(torch.equal(tensor, finished[name]) for name, tensor in network.state_dict().items())
    # An adapter may be started from as well, and be adapted once more.
    train.run(settings_with(init="six/milestones/0000004", adapter={"rank": 1}, steps=1))
    twice, once = open_model(ALONE, LightningDiT).load(), load_dit(MODEL)[0]
    assert all(torch.equal(tensor, once.state_dict()[name]) for name, tensor in twice.state_dict().items())


def test_the_average_is_of_what_is_trained_and_shares_the_rest(root: Path) -> None:
    network, _ = adapted()
    ema = EMA(network, 0.75)
    averaged = dict(ema.model.named_parameters())
    first = {name: tensor.clone() for name, tensor in averaged.items()}
    for name, weight in network.named_parameters():
        assert (averaged[name].data_ptr() == weight.data_ptr()) != weight.requires_grad, name
        if weight.requires_grad:
            weight.data.add_(1.0)
    ema.update(network, 0)
    for name, weight in network.named_parameters():
        expected = first[name] + 0.25 if weight.requires_grad else first[name]
        torch.testing.assert_close(averaged[name], expected)
        assert not averaged[name].requires_grad


def test_what_a_network_has_not_from_its_base_is_trained_whole_and_kept_with_the_adapter(root: Path) -> None:
    network, adaptation = adapted("projector")
    whole = {name for name, weight in network.named_parameters() if weight.requires_grad and "lora" not in name}
    assert whole == {"class_embedding.weight"} | {
        f"projector.{n}.{part}" for n in (0, 2, 4) for part in ("weight", "bias")
    }
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
        network.position.add_(0.5)  # as those of an imported checkpoint, which are not just ours
    numbers = adaptation.finish(Path("made"), network, {})
    assert numbers["trained"] == sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    expected = network(*inputs(), True)
    for source in ("made", "made/adapter"):
        found = open_model(source, LightningDiT).load()(*inputs(), True)
        torch.testing.assert_close(found.velocity, expected.velocity, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.projection, expected.projection, rtol=1e-4, atol=1e-4)


def test_memory_of_weights_gradients_moments_and_average_is_what_is_planned(root: Path) -> None:
    section = settings_with(**ADAPTER).dit
    network, _ = adapted()
    ema = EMA(network, 0.9)
    (optimizer,) = optimizers_of(network, transformer_loop(section, CPU))
    output = network(*inputs(), True)
    (output.velocity.square().mean() + output.projection.square().mean()).backward()
    optimizer.step()
    held: list[Tensor] = [*network.parameters(), *ema.model.parameters()]
    held += [weight.grad for weight in network.parameters() if weight.grad is not None]
    held += [part for state in optimizer.state.values() for name, part in state.items() if name != "step"]
    measured = sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())
    assert step_memory(load_dit(Path("base"))[0].config, section, 0, bf16=False) == measured
    full = step_memory(load_dit(Path("base"))[0].config, settings_with(init="base").dit, 0, bf16=False)
    assert full == 20 * sum(weight.numel() for weight in load_dit(Path("base"))[0].parameters())


def changed_base(root: Path) -> None:
    weights = load_file("base/ema.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, "base/ema.safetensors")


def test_an_adapter_without_its_own_base_is_refused_by_what_is_wrong(root: Path) -> None:
    train.run(settings_with(**ADAPTER))
    shutil.copytree("base", "elsewhere")
    changed_base(root)
    with refusal(ALONE, "base", "SHA-256", "base_model_name_or_path"):
        open_model(ALONE, LightningDiT)
    shutil.rmtree("base")
    with refusal(ALONE, "base does not exist", "base_model_name_or_path"):
        open_model(ALONE, LightningDiT)
    values = read_json(ALONE / "adapter_config.json")
    write_json(ALONE / "adapter_config.json", values | {"base_model_name_or_path": "elsewhere"})
    assert torch.equal(open_model(ALONE, LightningDiT).load()(*inputs()), load_dit(MODEL)[0](*inputs()))


def test_an_adapter_of_another_shape_is_refused_by_its_tensors(root: Path) -> None:
    train.run(settings_with(**ADAPTER))
    path = ALONE / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.blocks.0.mlp.down.lora_A.weight"
    wrong: list[tuple[dict[str, Tensor], str]] = [
        (tensors | {name: torch.zeros(3, 4)}, f"{name} is (3, 4)"),
        ({key: value for key, value in tensors.items() if key != name}, f"{name} is missing"),
        (tensors | {"more": torch.zeros(1)}, "more is unknown"),
    ]
    for content, said in wrong:
        save_file(content, path)
        with refusal(ALONE, "base", said):
            open_model(ALONE, LightningDiT).load()
    path.write_bytes(path.read_bytes()[:-8])
    with refusal(path, "damaged"):
        open_model(ALONE, LightningDiT).load()
    values = read_json(ALONE / "adapter_config.json")
    for change, said in (({"peft_type": "IA3"}, "IA3"), ({"peft_type": "none such"}, "none such"), ({"r": 0}, "r")):
        save_file(tensors, path)
        write_json(ALONE / "adapter_config.json", values | change)
        with pytest.raises(UserError, match=said):
            open_model(ALONE, LightningDiT).load()


def test_without_peft_an_adapter_is_refused_before_anything_is_moved_and_a_finished_model_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(settings_with(**ADAPTER))
    before = contents(Path("models"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    with refusal("dit.adapter", "peft", "sfd-cli[adapters]"):
        train.run(settings_with(**ADAPTER, seed=1))
    assert contents(Path("models")) == before
    with refusal(ALONE, "peft", "sfd-cli[adapters]"):
        open_model(ALONE, LightningDiT).load()
    load_dit(MODEL)


def test_mistakes_leave_the_finished_model_where_it_is(root: Path) -> None:
    train.run(settings_with(**ADAPTER))
    before = contents(Path("models"))
    with refusal("dit.adapter", "init"):
        train.run(settings_with(adapter={"rank": RANK}))
    with refusal("dit.adapter", 17, "width 16"):
        train.run(settings_with(init="base", adapter={"rank": 17}))
    with refusal("dit.init_learning_rate_scale", 0.1):
        train.run(settings_with(init="base", adapter={"rank": 2}, init_learning_rate_scale=0.1))
    with refusal("dit.init", "nowhere"):
        train.run(settings_with(init="nowhere", adapter={"rank": RANK}))
    assert contents(Path("models")) == before


def test_a_description_does_not_depend_on_the_order_of_a_set(root: Path) -> None:
    train.run(settings_with(**ADAPTER))
    values = json.loads((ALONE / "adapter_config.json").read_text())
    assert list(values) == sorted(values)
    assert (values["r"], values["lora_alpha"], values["modules_to_save"]) == (RANK, RANK, ["class_embedding"])
    assert isinstance(values["target_modules"], str)
    assert values["base_model_name_or_path"] == "base"


@pytest.mark.slow
def test_a_compiled_adapter_run_is_the_eager_one(root: Path) -> None:
    train.run(settings_with(**ADAPTER))
    eager = load_dit(MODEL)[0].state_dict()
    MODEL.rename("eager")
    shutil.rmtree("models/.checkpoints")
    torch.compiler.reset()
    train.run(settings_with(**ADAPTER, compile=True))
    for name, tensor in load_dit(MODEL)[0].state_dict().items():
        torch.testing.assert_close(tensor, eager[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one(root: Path) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS | {"dit": NETWORK | ADAPTER}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "-m", "sfd_cli", "train"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    several = load_dit(MODEL)[0].state_dict()
    MODEL.rename("several")
    train.run(settings_with(**ADAPTER))
    for name, tensor in load_dit(MODEL)[0].state_dict().items():
        torch.testing.assert_close(tensor, several[name], rtol=0, atol=1e-5)


class Frozen(nn.Module):
    """A layer that is trained beside one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.trained = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)


def test_a_state_of_training_is_without_what_is_not_trained_and_must_have_all_that_is(tmp_path: Path) -> None:
    model, other = Frozen(), Frozen()
    state = TrainingState.of(1, model, EMA(model, 0.9).model)
    assert state.model.keys() == state.ema.keys() == {"trained.weight", "trained.bias"}  # type: ignore[union-attr]
    held = other.held.weight.clone()
    average = EMA(other, 0.9).model
    state.restore(other, average)
    assert torch.equal(other.trained.weight, model.trained.weight)
    assert torch.equal(average.trained.weight, model.trained.weight)
    assert torch.equal(other.held.weight, held)
    del state.model["trained.bias"]
    with pytest.raises(RuntimeError, match=r"trained\.bias"):
        state.restore(other, None)


@pytest.mark.parametrize(
    ("rank", "trained", "together"), [(4, 4.12e6, 2.81e9), (16, 13.02e6, 2.99e9), (64, 48.6e6, 3.70e9)]
)
def test_the_page_says_what_a_step_of_sfd_xl_holds(rank: int, trained: float, together: float) -> None:
    config = LightningDiTConfig(16, 48, 1000, 16, repa_depth=2, feature_width=768)
    full, section = DiT(), DiT(init="sfd_xl", adapter=Adapter(rank=rank))
    assert step_memory(config, full, 0, bf16=False) == pytest.approx(13.65e9, rel=2e-3)
    assert step_memory(config, section, 0, bf16=False) == pytest.approx(together, rel=2e-3)
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| **together**")]
    assert f"**{together / 1e9:.1f} GB**" in row
    (row,) = [line for line in page.splitlines() if line.startswith("| numbers trained")]
    assert f"| {trained / 1e6:.1f} M" in row
    with torch.device("meta"):
        network = LightningDiT(config)
    assert adapter_numbers(network, rank) + network.class_embedding.weight.numel() == pytest.approx(trained, rel=2e-3)
