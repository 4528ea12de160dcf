"""Which number format a network computes in, and whether it can be compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfd_cli.devices import DeviceKind
from sfd_cli.errors import SettingError
from sfd_cli.networks import layout
from sfd_cli.networks.compilation import can_compile
from sfd_cli.networks.layout import laid_out
from sfd_cli.networks.precision import choose_frozen_precision, choose_precision, computing, frozen
from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.tables import DEVICES

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("can", "precision"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx512_f": True, "amx_bf16": False}, "fp32")],
)
def test_native_is_bf16_where_the_processor_multiplies_it(
    can: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    assert choose_precision("native", CPU) == precision
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("native", CUDA) == choose_precision("auto", CUDA) == "bf16"
    assert [choose_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_a_pytorch_that_cannot_tell_counts_as_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("native", CPU) == "fp32"


def test_without_a_compiler_networks_run_uncompiled_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not can_compile(CPU)
    assert "C++" in capsys.readouterr().err
    assert can_compile(CUDA)
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert can_compile(CPU)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "auto"), [("cuda", "tf32"), ("npu", "fp32"), ("xpu", "fp32"), ("mps", "fp32"), ("cpu", "fp32")]
)
def test_frozen_networks_compute_in_tf32_where_there_is_any_and_in_fp32_elsewhere(
    kind: str, auto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfd_cli.networks.precision.kind_of", lambda device: DEVICES[kind])
    assert choose_frozen_precision("auto", CPU) == auto
    assert [choose_frozen_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    if auto == "tf32":
        assert choose_frozen_precision("tf32", CPU) == "tf32"
    else:
        with pytest.raises(SettingError) as refused:
            choose_frozen_precision("tf32", CPU)
        assert refused.value.subject == "precision"


def test_a_frozen_network_computes_in_its_precision_whatever_is_around_it() -> None:
    a = torch.linspace(0.1, 1, 9).reshape(3, 3)
    weight = torch.nn.Parameter(a)
    with torch.autocast("cpu", torch.bfloat16), frozen("fp32", CPU):
        exact = computing(weight.matmul, "fp32", CPU)(a)
        assert (weight @ a).dtype == torch.bfloat16
    assert torch.equal(exact, a @ a)
    assert not exact.requires_grad
    with frozen("bf16", CPU):
        rounded = computing(weight.matmul, "bf16", CPU)(a)
        assert (weight @ a).dtype == torch.float32  # beside the network nothing is rounded
    assert rounded.dtype == torch.bfloat16
    assert 1e-4 < float((rounded.float() - exact).abs().max()) < 1e-2
    flags = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for precision, inside in (("tf32", ("high", True)), ("fp32", ("highest", False))):
        with frozen(precision, CUDA):  # type: ignore[arg-type]
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == inside
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == flags


def test_components_of_patches_are_exact_in_any_precision() -> None:
    torch.manual_seed(0)
    network = TexturePCA(TexturePCAConfig(patch_size=4, channels=8))
    network.components.copy_(torch.linalg.qr(torch.randn(48, 8))[0].T)
    images = torch.rand(2, 3, 8, 8)
    encode = computing(network.encode, "bf16", CPU)
    assert torch.equal(encode(images)[0], network.encode(images)[0])


def test_convolutions_lie_channels_last_where_the_table_says_so_and_compute_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = TextureVAE(TextureVAEConfig(2, (32, 32), norm_groups=8)).eval()
    images = torch.rand(1, 3, 16, 16)

    def layouts() -> set[bool]:
        weights = [weight for weight in network.parameters() if weight.ndim == 4 and weight.shape[2] > 1]
        return {weight.is_contiguous(memory_format=torch.channels_last) for weight in weights}

    plain = laid_out(network, CPU).encode(images)[0].detach()
    assert layouts() == {False}
    monkeypatch.setattr(layout, "kind_of", lambda device: DeviceKind("cpu", channels_last=True))
    last = laid_out(network, CPU).encode(images)[0].detach()
    assert layouts() == {True}
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)
