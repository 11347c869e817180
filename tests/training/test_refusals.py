"""Arguments out of range, or that contradict each other, are refused in one line."""

import pytest

from degrain.models.core.errors import InputError
from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.training import GANModule
from tests.training.recipes import TINY, gan, plain, vae


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 0}, "budget (0)"),
        ({"validate_every": 0}, "validate_every (0)"),
        ({"warmup": -0.1}, "warmup (-0.1)"),
        ({"warmup": 0.6, "decay": 0.6}, "at most 1 together"),
        ({"learning_rate": 0.0}, "learning_rate (0.0)"),
        ({"seed": -1}, "seed (-1)"),
    ],
)
@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_nonsense_is_refused_in_one_line(trained, stage, settings, said):
    with pytest.raises(InputError) as caught:
        vae(**settings) if stage == "vae" else gan(trained, **settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"rate_warmup": -0.1},
        {"rate_warmup": 1.1},
        {"gradient_clip": 0.0},
        {"gradient_clip": float("nan")},
        {"prior_images": 0},
    ],
    ids=str,
)
def test_nonsense_of_stage_1_is_refused_in_one_line(settings):
    [(name, value)] = settings.items()
    with pytest.raises(InputError, match=rf"{name} \({value}\)"):
        vae(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty_weight": -1.0},
        {"penalty_weight": float("nan")},
        {"spread_weight": float("inf")},
        {"penalty_every": 0},
        {"translate": -0.1},
        {"translate": 0.6},
        {"translate_from": -1},
        {"spread_weight": -0.1},
        {"spread_every": 0},
        {"ema_share": 0.0},
        {"ema_share": 1.5},
        {"feature_weight": -0.5},
        {"feature_weight": float("inf")},
        {"ema_share": float("nan")},
        {"ratio_images": 0},
        {"ratio_draws": 1},
    ],
    ids=str,
)
def test_nonsense_of_stage_2_is_refused_in_one_line(trained, settings):
    [(name, value)] = settings.items()
    with pytest.raises(InputError, match=rf"{name} \({value}\)"):
        gan(trained, **settings)


def test_another_size_is_refused(trained):
    with pytest.raises(InputError, match="made for 32 pixels, the data have 64; set data.size"):
        GANModule(str(trained.vae / "last.ckpt"), 64, TINY, TINY)


CONTRADICTIONS = {
    "spread of l2": ({"loss": "l2"}, "spread_weight (0.2) holds the variance over noise that loss l2 takes away"),
    "spread of no noise": ({"noise": False}, "spread_weight (0.2) holds a variance over noise, and with noise false"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_with_the_reason(trained, case):
    settings, said = CONTRADICTIONS[case]
    with pytest.raises(InputError) as refusal:
        gan(trained, **settings)
    assert said in str(refusal.value) and "take spread_weight 0" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_moving_what_no_discriminator_sees_is_refused(trained):
    with pytest.raises(InputError, match=r"translate \(0.1\) moves what a discriminator sees.*; take translate 0"):
        gan(trained, loss="l2", spread_weight=0.0, translate=0.1)


def test_a_discriminator_on_features_without_another_is_refused(trained):
    with pytest.raises(InputError, match=r"feature_weight \(0.5\) weighs a discriminator, and loss l2 has none"):
        gan(trained, loss="l2", spread_weight=0.0, feature_weight=0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"penalty_weight": -1.0}, r"penalty_weight \(-1.0\)"), ({"ema_share": 0.0}, r"ema_share \(0.0\)")],
    ids=str,
)
def test_nonsense_of_a_plain_gan_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        plain(**settings)
    with pytest.raises(InputError, match="latent 0"):
        Generator(32, GeneratorConfig((8, 8), patch=4, latent=0))
