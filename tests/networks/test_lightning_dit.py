from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference_files import part
from torch import Tensor
from torch._dynamo.utils import counters

from sfd_cli.diffusion import objective
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import SettingError
from sfd_cli.formats.format import FormatError
from sfd_cli.formats.reference_dit import dit_from_reference, dit_to_reference
from sfd_cli.networks import lightning_dit
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig, attend
from sfd_cli.training.transformer import flops_per_image

NETWORKS = ["dit_sfd", "dit_sync", "dit_plain"]
SMALL = LightningDiTConfig(
    grid=4,
    in_channels=6,
    num_classes=5,
    semantic_channels=2,
    width=32,
    depth=2,
    heads=2,
    repa_depth=1,
    repa_width=24,
    feature_width=12,
)


def reference_network(name: str, prefix: str = "model.") -> LightningDiT:
    config, weights = dit_from_reference(part(name, prefix), heads=4, semantic_channels=4)
    network = LightningDiT(config)
    network.load_state_dict(weights)
    return network.eval()


def random_network(config: LightningDiTConfig = SMALL, seed: int = 0) -> LightningDiT:
    """A network none of whose weights are zero, as after some training."""
    torch.manual_seed(seed)
    network = LightningDiT(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def random_input(config: LightningDiTConfig = SMALL, batch: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, config.grid, config.grid, generator=generator)
    t_texture, t_semantic = torch.rand(2, batch, generator=generator)
    return x, t_texture, t_semantic, torch.randint(0, config.num_classes + 1, (batch,), generator=generator)


@pytest.mark.parametrize(
    ("name", "prefix"), [(name, "model.") for name in NETWORKS] + [("dit_sfd", "guide."), ("dit_sync", "guide.")]
)
def test_converting_a_checkpoint_and_back_loses_nothing(name: str, prefix: str) -> None:
    original = part(name, prefix)
    config, weights = dit_from_reference(original, heads=4, semantic_channels=4)
    exported = dit_to_reference(config, weights)
    assert set(exported) == set(original)
    for key, tensor in original.items():
        assert exported[key].dtype == tensor.dtype
        assert torch.equal(exported[key], tensor), key


def test_the_architecture_is_read_off_the_tensors() -> None:
    config, _ = dit_from_reference(part("dit_sfd", "model."), semantic_channels=4)
    assert (config.grid, config.in_channels, config.num_classes, config.heads) == (4, 12, 10, 4)
    assert (config.mlp_ratio, config.repa_depth, config.repa_width, config.feature_width) == (4.0, 2, 48, 384)
    plain, _ = dit_from_reference(part("dit_plain", "model."), heads=4)
    assert (plain.grid, plain.patch_size, plain.time_embedding) == (8, 2, "single")
    assert not any((plain.qk_norm, plain.swiglu, plain.rope, plain.rms_norm, plain.repa_depth))


@pytest.mark.parametrize("width", [32, 48, 64, 384, 1000, 1152, 1536])
@pytest.mark.parametrize("ratio", [2.0, 3.5, 4.0, 8 / 3])
@pytest.mark.parametrize("swiglu", [True, False])
def test_the_mlp_width_survives_conversion(width: int, ratio: float, swiglu: bool) -> None:
    config = replace(SMALL, width=width, heads=1, depth=1, mlp_ratio=ratio, swiglu=swiglu)
    with torch.device("meta"):
        weights = LightningDiT(config).state_dict()
    exported = dit_to_reference(config, weights)
    recovered, _ = dit_from_reference(exported, semantic_channels=2, repa_depth=1)
    assert recovered.mlp_width == config.mlp_width


def test_a_layernorm_network_with_normalised_queries_converts() -> None:
    config = replace(SMALL, rms_norm=False, swiglu=False, patch_size=2, repa_depth=0, repa_width=2048, feature_width=0)
    network = random_network(config)
    recovered, weights = dit_from_reference(dit_to_reference(config, network.state_dict()), semantic_channels=2)
    assert recovered == config
    assert all(torch.equal(weights[key], tensor) for key, tensor in network.state_dict().items())


def test_what_the_tensors_do_not_tell_is_asked_for() -> None:
    with pytest.raises(FormatError, match="--heads"):
        dit_from_reference(part("dit_plain", "model."))
    with pytest.raises(FormatError, match="--semantic-channels"):
        dit_from_reference(part("dit_sfd", "model."))


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_name_of_the_key() -> None:
    weights = part("dit_sync", "model.")
    with pytest.raises(FormatError, match=r"extra\.weight"):
        dit_from_reference(weights | {"extra.weight": torch.zeros(1)})
    with pytest.raises(FormatError, match=r"blocks\.1\.attn\.proj\.bias"):
        dit_from_reference({key: tensor for key, tensor in weights.items() if key != "blocks.1.attn.proj.bias"})
    with pytest.raises(FormatError, match=r"x_embedder\.proj\.weight"):
        dit_from_reference({"some.weight": torch.zeros(1)})
    with pytest.raises(FormatError, match="pos_embed"):
        dit_from_reference(weights | {"pos_embed": weights["pos_embed"] + 0.1})


@pytest.mark.parametrize("name", ["dit_sfd", "dit_plain"])
def test_an_untrained_network_predicts_no_velocity_and_its_blocks_do_nothing(name: str) -> None:
    config = reference_network(name).config
    torch.manual_seed(0)
    network = LightningDiT(config)
    x, t_texture, t_semantic, labels = random_input(config)
    assert not network(x, t_texture, t_semantic, labels).any()
    tokens, condition = torch.randn(2, config.tokens_per_side**2, config.width), torch.randn(2, config.width)
    rotary = (network.rotary_cos, network.rotary_sin) if config.rope else None
    assert torch.equal(network.blocks[0](tokens, condition, rotary), tokens)


def test_conditions_are_rows_of_one_embedding_and_the_last_one_is_none() -> None:
    network = random_network()
    x, t_texture, t_semantic, rows = random_input()
    conditions = network.config.conditions
    assert network.class_embedding.num_embeddings == conditions.rows == SMALL.num_classes + 1
    none = network(x, t_texture, t_semantic, conditions.unconditional(rows))
    for row in range(len(conditions)):
        assert not torch.allclose(none, network(x, t_texture, t_semantic, torch.full_like(rows, row)))
    assert torch.equal(none, network(x, t_texture, t_semantic, torch.full_like(rows, SMALL.num_classes)))


def test_the_space_has_the_layout_of_the_latent_and_no_statistics() -> None:
    assert SMALL.space == LatentSpace(texture=4, semantic=2, grid=4)
    assert not SMALL.space.is_scaled


def test_each_stream_has_its_own_time() -> None:
    network = random_network()
    x, t_texture, t_semantic, labels = random_input()
    both = network(x, t_texture, t_semantic, labels)
    assert not torch.allclose(both, network(x, t_texture + 0.1, t_semantic, labels))
    assert not torch.allclose(both, network(x, t_texture, t_semantic + 0.1, labels))
    assert not torch.allclose(both, network(x, t_semantic, t_texture, labels))


def test_a_network_with_a_single_time_takes_the_mean_of_both() -> None:
    network = random_network(replace(SMALL, time_embedding="single"))
    x, t_texture, t_semantic, labels = random_input()
    mean = (t_texture + t_semantic) / 2
    torch.testing.assert_close(network(x, t_texture, t_semantic, labels), network(x, mean, mean, labels))


def test_an_image_does_not_see_the_rest_of_its_batch() -> None:
    network = random_network()
    together = network(*random_input())
    alone = network(*(tensor[1:2] for tensor in random_input()))
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-5)


def test_recomputing_activations_leaves_gradients_as_they_are() -> None:
    network = random_network()
    gradients = []
    for network.checkpoint_activations in (False, True):
        network.zero_grad()
        velocity, projection, _ = network(*random_input(), project=True)
        (velocity.square().mean() + projection.square().mean()).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for stored, recomputed in zip(*gradients, strict=True):
        assert torch.equal(stored, recomputed)


def test_every_parameter_is_trained_so_that_ddp_finds_none_unused() -> None:
    network = random_network()
    velocity, projection, _ = network(*random_input(), project=True)
    (velocity.square().mean() + projection.square().mean()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("depth", [1, 2])
def test_hidden_tokens_are_those_after_their_block_and_cost_the_velocity_nothing(depth: int) -> None:
    network, after = random_network(), []
    network.blocks[depth - 1].register_forward_hook(lambda module, inputs, output: after.append(output))
    velocity, projection, hidden = network(*random_input(), hidden_depth=depth)
    assert hidden is after[0]
    assert hidden.shape == (3, 16, 32)
    assert projection is None
    assert torch.equal(velocity, network(*random_input()))


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_the_forward_pass_is_one_graph(prediction: Any) -> None:
    network = random_network(replace(SMALL, prediction=prediction))
    traced = torch.compile(network, backend="aot_eager", fullgraph=True)
    velocity, projection, hidden = traced(*random_input(), project=True, hidden_depth=1)
    expected = network(*random_input(), project=True, hidden_depth=1)
    torch.testing.assert_close((velocity, projection, hidden), tuple(expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sfd", "sync", "plain"])
def test_compiled_networks_have_the_references_velocity(name: str) -> None:
    """What `dit.compile` and `sample.compile` run, by the compiler that they use."""
    given = part(f"dit_{name}", "forward.")
    times = [given[f"t_{stream}"] if f"t_{stream}" in given else given["t"] for stream in ("texture", "semantic")]
    network = reference_network(f"dit_{name}")
    torch.compiler.reset()
    network.compile()
    with torch.no_grad():
        velocity = network(given["x"], *times, given["y"])
    torch.testing.assert_close(velocity, given["velocity"], atol=1e-4, rtol=0)


def test_compiled_blocks_share_one_graph_and_keep_their_names() -> None:
    network = random_network()
    names = list(network.state_dict())
    expected = network(*random_input())
    torch.compiler.reset()
    counters.clear()
    network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(network(*random_input()), expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert list(network.state_dict()) == names


def test_bfloat16_autocast_stays_near_float64() -> None:
    assert relative_error(torch.device("cpu"), torch.bfloat16) < 2e-2


def qkv(dtype: torch.dtype, tokens: int = 5) -> list[Tensor]:
    """Queries, keys and values, the same in every dtype that holds a bfloat16."""
    drawn = torch.randn(3, 2, 4, tokens, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    return [part.to(dtype).requires_grad_() for part in drawn]


def attended(attention: Callable[..., Tensor], dtype: torch.dtype, tokens: int) -> list[Tensor]:
    """What attention gives, and the gradients of its inputs, in float64."""
    given = qkv(dtype, tokens)
    output = attention(*given)
    assert output.dtype == dtype
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((output * weights.to(dtype)).sum(), given)
    return [tensor.detach().double() for tensor in (output, *gradients)]


@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_plain_products_in_bfloat16_are_as_near_to_float64_as_the_fused_kernel(tokens: int) -> None:
    exact = attended(F.scaled_dot_product_attention, torch.float64, tokens)
    plain, fused = (attended(kind, torch.bfloat16, tokens) for kind in (attend, F.scaled_dot_product_attention))
    for expected, ours, theirs in zip(exact, plain, fused, strict=True):
        bound = max(3 * float((theirs - expected).norm()), 1e-2 * float(expected.norm()))
        assert float((ours - expected).norm()) <= bound


def fused_calls(monkeypatch: pytest.MonkeyPatch, *given: Tensor) -> int:
    """How often `attend` asks the fused kernel, and that it gives what that gives."""
    calls = []
    fused = F.scaled_dot_product_attention
    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", lambda *args: (calls.append(1), fused(*args))[1])
        found = attend(*given)
    torch.testing.assert_close(found, fused(*given), rtol=0.05, atol=0.05)
    return len(calls)


def test_plain_products_are_for_training_in_bfloat16_on_few_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_calls(monkeypatch, *qkv(torch.bfloat16)) == 0
    assert fused_calls(monkeypatch, *qkv(torch.bfloat16, 256)) == 0
    assert fused_calls(monkeypatch, *qkv(torch.bfloat16, 257)) == 1
    assert fused_calls(monkeypatch, *qkv(torch.float32)) == 1
    with torch.no_grad():
        assert fused_calls(monkeypatch, *(part.detach() for part in qkv(torch.bfloat16))) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_attention_on_a_gpu_is_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_calls(monkeypatch, *(part.detach().cuda().requires_grad_() for part in qkv(torch.bfloat16))) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
def test_a_gpu_stays_near_float64_on_the_cpu(dtype: torch.dtype, bound: float) -> None:
    assert relative_error(torch.device("cuda"), dtype) < bound


def relative_error(device: torch.device, dtype: torch.dtype, config: LightningDiTConfig = SMALL) -> float:
    """Norm of the error over the norm of the float64 velocity, the network running under autocast."""
    network, inputs = random_network(config), random_input()
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        velocity = network.to(device)(*(tensor.to(device) for tensor in inputs)).cpu().double()
    x, *times, labels = inputs
    with torch.no_grad():
        exact = network.cpu().double()(x.double(), *(time.double() for time in times), labels)
    assert exact.dtype == torch.float64
    return float((velocity - exact).norm() / exact.norm())


def test_asking_for_a_projection_that_does_not_exist_is_an_error() -> None:
    network = random_network(replace(SMALL, repa_depth=0))
    with pytest.raises(ValueError, match="repa_depth"):
        network(*random_input(), project=True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"heads": 5}, "heads"),
        ({"heads": 16}, "heads"),
        ({"width": 34, "rope": False}, "width"),
        ({"patch_size": 3}, "patch_size"),
        ({"repa_depth": 3}, "repa_depth"),
        ({"repa_depth": -1}, "repa_depth"),
        ({"feature_width": 0}, "feature_width"),
        ({"prediction": "noise"}, "prediction"),
    ],
)
def test_an_impossible_architecture_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(SettingError) as refused:
        replace(SMALL, **change)
    assert refused.value.subject == field


DATA = replace(SMALL, prediction="data")


def test_a_network_that_predicts_data_gives_the_velocity_it_means() -> None:
    """The last layer's output is the clean latent: four texture and two semantic channels, each with its own time."""
    given, network = random_input(), random_network(DATA)
    clean = random_network()(*given)
    found = network(*given)
    x, t_texture, t_semantic, _ = given
    for stream, t in ((slice(0, 4), t_texture), (slice(4, 6), t_semantic)):
        for image in range(3):
            left = max(1 - t[image].item(), 0.05)
            expected = (clean[image, stream] - x[image, stream]) / left
            torch.testing.assert_close(found[image, stream], expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_stream_of_a_network_that_predicts_data_is_finite_and_so_is_its_gradient() -> None:
    network = random_network(DATA)
    x, t_texture, _, labels = random_input()
    velocity = network(x, t_texture, torch.ones(3), labels)
    velocity.square().mean().backward()
    assert velocity.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


def test_a_network_that_predicts_data_ends_in_float32_whatever_its_blocks_compute_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bfloat16 rounds to 2^-9, which near the data would be a twenty-fifth of a standard deviation of velocity."""
    network, dtypes = random_network(DATA), []

    def velocity_of_data(data: Tensor, *others: Any) -> Tensor:
        dtypes.append(data.dtype)
        return objective.velocity_of_data(data, *others)

    monkeypatch.setattr(lightning_dit, "velocity_of_data", velocity_of_data)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(*random_input()).dtype == torch.float32
    assert network.to(torch.bfloat16)(*random_input()).dtype == torch.float32
    assert dtypes == [torch.float32] * 2
    assert relative_error(torch.device("cpu"), torch.bfloat16, DATA) < 2e-2


@pytest.mark.parametrize("config", [SMALL, DATA, replace(SMALL, rope=False, rms_norm=False, swiglu=False)])
def test_weights_in_half_precision_take_a_float32_latent(config: LightningDiTConfig) -> None:
    network, inputs = random_network(config), random_input()
    with torch.no_grad():
        exact, rounded = network(*inputs), network.to(torch.bfloat16)(*inputs).float()
    assert 0 < (rounded - exact).norm() / exact.norm() < 2e-2


def test_data_and_velocity_cost_the_same() -> None:
    assert flops_per_image(DATA) == flops_per_image(SMALL) > 0
