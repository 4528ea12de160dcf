import pytest
import torch
import torch.nn.functional as F
from reference_files import part

from sfd_cli.errors import SettingError
from sfd_cli.formats.diffusers import texture_vae_from_diffusers
from sfd_cli.formats.format import FormatError
from sfd_cli.formats.ldm import texture_vae_from_ldm
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

WEIGHTS = part("texture_vae_f16", "state_dict.")
SMALL = TextureVAEConfig(channels=3, block_channels=(8, 8), attention_levels=(1,), norm_groups=4, space_to_depth=2)


def small_vae(config: TextureVAEConfig = SMALL) -> TextureVAE:
    torch.manual_seed(0)
    return TextureVAE(config).eval().requires_grad_(False)


def test_the_architecture_of_a_published_file_is_read_and_its_training_parts_are_ignored() -> None:
    training = {"loss.logvar": torch.zeros(1), "foundation_model.blocks.0.weight": torch.zeros(2)}
    config, converted = texture_vae_from_ldm(WEIGHTS | training)
    assert config == TextureVAEConfig(
        channels=6, block_channels=(32, 32, 32, 32, 64), layers_per_block=2, attention_levels=(4,)
    )
    assert len(converted) == len(WEIGHTS)


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_name_of_the_key() -> None:
    without = {key: tensor for key, tensor in WEIGHTS.items() if key != "post_quant_conv.bias"}
    with pytest.raises(FormatError, match=r"post_quant_conv\.bias"):
        texture_vae_from_ldm(without)
    with pytest.raises(FormatError, match=r"quantize\.embedding\.weight"):
        texture_vae_from_ldm(WEIGHTS | {"quantize.embedding.weight": torch.zeros(1)})
    with pytest.raises(FormatError, match=r"encoder\.down\.0\.block\.0\.conv1\.weight"):
        texture_vae_from_ldm({"weight": torch.zeros(1)})


def test_space_to_depth_only_rearranges_the_latent() -> None:
    folded = small_vae()
    plain = small_vae(TextureVAEConfig(channels=3, block_channels=(8, 8), attention_levels=(1,), norm_groups=4))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, logvar = folded.encode(images)
    plain_mean, plain_logvar = plain.encode(images)
    assert torch.equal(mean, F.pixel_unshuffle(plain_mean, 2))
    assert torch.equal(logvar, F.pixel_unshuffle(plain_logvar, 2))
    assert torch.equal(folded.decode(mean), plain.decode(plain_mean))


def test_the_latent_has_the_shape_that_is_announced() -> None:
    vae = small_vae()
    mean, logvar = vae.encode(torch.zeros(1, 3, 16, 24))
    assert (vae.latent_channels, vae.downsampling) == (12, 4)
    assert mean.shape == logvar.shape == (1, 12, 4, 6)
    assert vae.decode(mean).shape == (1, 3, 16, 24)


def test_extreme_images_keep_the_variance_in_range() -> None:
    vae = small_vae()
    vae.autoencoder.quant_conv.weight.mul_(1e6)
    _, logvar = vae.encode(torch.rand(1, 3, 16, 16))
    assert logvar.min() == -30
    assert logvar.max() == 20


@pytest.mark.parametrize("old_names", [False, True])
def test_a_diffusers_autoencoder_is_imported_under_its_old_and_new_names(old_names: bool) -> None:
    vae = small_vae()
    weights = dict(vae.autoencoder.state_dict())
    if old_names:
        for ours, theirs in {
            ".to_q.": ".query.",
            ".to_k.": ".key.",
            ".to_v.": ".value.",
            ".to_out.0.": ".proj_attn.",
        }.items():
            weights = {key.replace(ours, theirs): tensor for key, tensor in weights.items()}
    description = {"_class_name": "AutoencoderKL", **vae.autoencoder.config}
    config, converted = texture_vae_from_diffusers(description, weights)
    imported = TextureVAE(config)
    imported.load_state_dict(converted)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        mean, _ = imported.encode(images)
    torch.testing.assert_close(F.pixel_unshuffle(mean, 2), vae.encode(images)[0])


def test_another_kind_of_diffusers_autoencoder_or_half_a_description_is_refused() -> None:
    with pytest.raises(FormatError, match="AutoencoderTiny"):
        texture_vae_from_diffusers({"_class_name": "AutoencoderTiny"}, {})
    with pytest.raises(FormatError, match="down_block_types"):
        texture_vae_from_diffusers({"_class_name": "AutoencoderKL"}, {})


def test_impossible_architectures_are_refused() -> None:
    with pytest.raises(SettingError) as groups:
        TextureVAEConfig(channels=4, block_channels=(32, 48))
    with pytest.raises(SettingError) as levels:
        TextureVAEConfig(channels=4, block_channels=(32, 32), attention_levels=(2,))
    assert (groups.value.subject, levels.value.subject) == ("norm_groups", "attention_levels")
