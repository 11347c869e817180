"""Small networks at every image size: shapes, new weights, gradients, one training step, refusals."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, kl_to_standard_normal
from degrain.models.core.layers import PyramidConfig
from degrain.models.gan.denoiser import Denoiser
from degrain.models.gan.discriminator import Discriminator
from degrain.models.vae.likelihood import log_bin_probability
from degrain.models.vae.network import VAE, VAEConfig

SIZES = (32, 64, 128, 256)
TINY = PyramidConfig(widths=(4, 6), blocks=1, patch=2)
CONFIG = VAEConfig(latent=5, encoder=TINY, decoder=TINY)


def shaken(net: nn.Module) -> nn.Module:
    """Move every weight, as training does, so that none is zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def distribution(size: int, std: float = 0.1, batch: int = 2) -> Gaussian:
    return Gaussian(torch.rand(batch, 3, size, size), torch.full((batch, 3, size, size), std).log())


def photographs(size: int, batch: int = 2) -> Tensor:
    return torch.randint(256, (batch, 3, size, size)) / 255


@pytest.mark.parametrize("size", SIZES)
def test_shapes(size):
    vae, p = VAE(size, CONFIG), distribution(size)
    with torch.no_grad():
        q = vae.encode(photographs(size))
        assert q.mean.shape == q.logstd.shape == (2, 5)
        decoded = vae.decode(q.mean)
        assert decoded.mean.shape == decoded.logstd.shape == (2, 3, size, size)
        assert Denoiser(size, TINY)(torch.randn_like(p.mean), p).shape == (2, 3, size, size)
        assert Discriminator(size, TINY)(torch.randn_like(p.mean), p).shape == (2,)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("config", [PyramidConfig((4, 4, 4, 4), 2, 1), PyramidConfig((4,), 1, 4)], ids=str)
@torch.no_grad()
def test_shapes_of_other_patches(size, config):
    vae = VAE(size, VAEConfig(latent=5, encoder=config, decoder=config))
    p = vae.decode(vae.encode(photographs(size)).mean)
    assert Denoiser(size, config)(torch.randn_like(p.mean), p).shape == p.mean.shape == (2, 3, size, size)
    assert Discriminator(size, config)(torch.randn_like(p.mean), p).shape == (2,)


STDS = ("pixel", "shared", "fixed")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("std", STDS)
def test_a_new_decoder_says_grey_with_std_start_everywhere(size, std):
    config = replace(CONFIG, std_start=0.08, std=std)
    p = VAE(size, config).decode(torch.randn(4, 5))
    assert p.mean.shape == p.logstd.shape == (4, 3, size, size)
    torch.testing.assert_close(p.mean, torch.full_like(p.mean, 0.5), rtol=0, atol=0.02)
    start = 0.08 + (0 if std == "fixed" else config.std_floor)
    torch.testing.assert_close(p.std, torch.full_like(p.std, start), rtol=0.05, atol=0)


def test_the_head_has_the_channels_that_its_std_needs():
    counts = {std: sum(w.numel() for w in VAE(32, replace(CONFIG, std=std)).decoder.parameters()) for std in STDS}
    channels = 3 * TINY.patch**2
    assert counts["pixel"] - counts["fixed"] == channels * (9 * TINY.widths[0] + 1)  # 3x3 kernels and a bias
    assert counts["shared"] - counts["fixed"] == 1


@pytest.mark.parametrize("std", STDS)
def test_the_std_is_learned_of_each_pixel_of_all_together_or_not_at_all(std):
    vae, x = shaken(VAE(32, replace(CONFIG, std=std))), photographs(32)
    before = vae.decode(torch.randn(2, 5))
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (-log_bin_probability(vae.decode(torch.randn(2, 5)), x)).mean().backward()
        optimizer.step()
    after = vae.decode(torch.randn(2, 5))
    assert len(after.std.unique()) == 1 if std != "pixel" else len(after.std.unique()) > 1000
    assert (after.std.mean() == before.std.mean()) == (std == "fixed")
    assert (after.mean != before.mean).any()


def test_the_gradient_of_a_std_from_stopped_features_ends_at_its_rows_of_the_head():
    decoder = shaken(VAE(32, CONFIG)).decoder
    features = decoder.features(torch.randn(2, 5))
    decoder.head(features.detach()).logstd.sum().backward()
    moved = {name for name, w in decoder.named_parameters() if w.grad is not None and w.grad.any()}
    head = f"layers.{len(decoder.layers) - 2}"
    assert moved == {f"{head}.weight", f"{head}.bias"}
    bias = decoder.get_parameter(f"{head}.bias").grad
    assert not bias[: len(bias) // 2].any() and bias[len(bias) // 2 :].all()


@pytest.mark.parametrize("scale", [1e1, 1e3, 1e5])
def test_std_never_falls_below_its_floor(scale):
    p = shaken(VAE(32, CONFIG)).decode(scale * torch.randn(8, 5))
    assert (p.std >= CONFIG.std_floor * (1 - 1e-5)).all()
    assert p.std.min() < 1.01 * CONFIG.std_floor or scale < 1e3  # extreme enough to reach it


@pytest.mark.parametrize("size", [128, 256])
def test_a_training_step_of_the_vae(size):
    vae, x = VAE(size, CONFIG), photographs(size)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        q = vae.encode(x)
        distortion = -log_bin_probability(vae.decode(q.sample(torch.zeros_like(q.mean))), x).sum((1, 2, 3))
        loss = (distortion + kl_to_standard_normal(q).sum(1)).mean() / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("net", ["encoder", "decoder", "denoiser", "discriminator"])
def test_no_image_of_a_batch_influences_another(net):
    p, vae = distribution(32, batch=3), shaken(VAE(32, CONFIG))
    call, inputs = {
        "encoder": (lambda x: vae.encode(x).logstd, photographs(32, 3)),
        "decoder": (lambda z: vae.decode(z).logstd, torch.randn(3, 5)),
        "denoiser": (lambda noise: shaken(Denoiser(32, TINY))(noise, p), torch.randn(3, 3, 32, 32)),
        "discriminator": (lambda r: shaken(Discriminator(32, TINY))(r, p), torch.randn(3, 3, 32, 32)),
    }[net]
    (gradient,) = torch.autograd.grad(call(inputs.requires_grad_())[1].sum(), inputs)
    assert [bool(row.any()) for row in gradient] == [False, True, False]


@pytest.mark.parametrize("size", [0, 16, 48, 63, 512])
def test_bad_sizes_are_refused(size):
    with pytest.raises(InputError, match=f"^image size {size}: .*32, 64, 128 or 256$"):
        VAE(size, CONFIG)


@pytest.mark.parametrize(
    "bad",
    [{"widths": ()}, {"widths": (8, 0)}, {"widths": (4,) * 5}, {"blocks": 0}, {"patch": 3}, {"patch": 8}],
    ids=str,
)
@pytest.mark.parametrize("net", [Denoiser, Discriminator, lambda s, c: VAE(s, replace(CONFIG, decoder=c))])
def test_bad_pyramids_are_refused_in_one_line(net, bad):
    with pytest.raises(InputError) as refusal:
        net(64, replace(TINY, **bad))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("bad", [{"latent": 0}, {"std_floor": 0.0}, {"std_floor": 0.2}, {"std_start": -1.0}], ids=str)
def test_bad_vaes_are_refused_in_one_line(bad):
    with pytest.raises(InputError, match=next(iter(bad))) as refusal:
        VAE(64, replace(CONFIG, **bad))
    assert "\n" not in str(refusal.value)
