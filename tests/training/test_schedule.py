"""The clock that counts images, and what depends on it: rates, weights, noise, validations."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.training.divergence import PATIENCE
from degrain.models.training.schedule import Schedule, warmed_up
from tests.training.recipes import NET, STEP, Record, attached, fit, gan, portraits, rate_of, vae


def test_the_rate_warms_up_stays_and_falls_as_a_cosine():
    module = vae(budget=1000, learning_rate=2.0, warmup=0.1, decay=0.4)
    rates = {}
    for module.images_seen in range(0, 1101, 50):
        rates[module.images_seen] = rate_of(module)
    assert 0 < rates[0] < 0.03 and rates[50] == pytest.approx(1.0, rel=0.02)
    assert all(rates[n] == 2.0 for n in range(100, 601, 50))
    for n in range(600, 1001, 50):
        assert rates[n] == pytest.approx(1 + math.cos(math.pi * (n - 600) / 400))
    assert rates[1000] == rates[1100] == pytest.approx(0)
    constant = vae(budget=1000, learning_rate=2.0, warmup=0, decay=0)
    assert {rate_of(constant) for constant.images_seen in (0, 500, 1000)} == {2.0}


def test_every_optimiser_follows_the_schedule(trained):
    record = Record()
    module = fit(gan(trained, warmup=0.2, decay=0.5), portraits(trained), record)
    for step in record.steps:
        module.images_seen = step["images_seen"] - STEP
        assert step["rate0"] == step["rate1"] == rate_of(module)


@pytest.mark.parametrize("weight", [1.0, 0.3, 4.0])
def test_the_weight_of_the_rate_rises_for_its_share_and_stays(weight):
    module = attached(vae(replace(NET, std="fixed"), budget=1000, rate_warmup=0.2, rate_weight=weight))
    torch.nn.init.constant_(module.vae.encoder.layers[-1].bias, 2)  # a rate that float32 tells beside the distortion
    x, weights = torch.rand(2, 3, 32, 32), {}
    for n in (0, 50, 100, 200, 600, 990):
        module.images_seen = n
        loss, terms = module.loss(x, module.noise())
        weights[n] = ((loss - terms["distortion"].mean()) / terms["rate"].mean()).item() / weight
    assert weights == pytest.approx({0: 0, 50: 0.25, 100: 0.5, 200: 1, 600: 1, 990: 1}, abs=1e-3)


def test_noise_depends_on_seed_and_images_seen_alone():
    def noise(seen: int, seed: int = 0) -> Tensor:
        module = attached(vae(seed=seed))
        module.images_seen = seen
        torch.rand(seen % 7)  # the global stream is no part of it
        return module.noise().normal(4, 5)

    assert torch.equal(noise(48), noise(48))
    assert not torch.equal(noise(48), noise(64)) and not torch.equal(noise(48), noise(48, seed=1))


def test_noise_of_held_out_images_depends_on_seed_and_number_alone():
    def noise(*numbers: int, seed: int = 0, seen: int = 0) -> Tensor:
        module = attached(vae(seed=seed))
        module.images_seen = seen
        return module.held_out_noise({"index": torch.tensor(numbers)}, 2, (5,))

    whole = noise(0, 1, 2, 3)
    assert torch.equal(torch.cat([noise(3, 1, seen=99), noise(0)]), whole[[3, 1, 0]])
    assert len(whole.unique()) == 20 and not torch.equal(noise(0, seed=1), whole[:1])


@pytest.mark.parametrize(("every", "validations"), [(48, [48, 96, 128]), (40, [48, 80, 128]), (500, [128])])
def test_legs_end_at_multiples_of_validate_every(trained, every, validations):
    record = Record()
    module = fit(vae(budget=128, validate_every=every), portraits(trained), record)
    assert record.validations == validations  # at the first whole batch from there on
    assert [step["images_seen"] for step in record.steps] == list(range(STEP, 129, STEP))
    assert module.images_seen == 128


def test_images_are_counted_over_all_processes():
    module = attached(vae(), world=3)
    module.log = lambda *_, **__: None
    module.count_images({"image": torch.zeros(4, 3, 32, 32)})
    assert module.images_seen == 12 and not module.trainer.should_stop
    module.images_seen = module.schedule.budget - 12
    module.count_images({"image": torch.zeros(4, 3, 32, 32)})
    assert module.trainer.should_stop


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 0}, "budget (0)"),
        ({"validate_every": -1}, "validate_every (-1)"),
        ({"decay": -0.1}, "decay (-0.1)"),
        ({"warmup": 0.6, "decay": 0.6}, "at most 1 together"),
        ({"warmup_images": -1}, "warmup_images (-1)"),
        ({"learning_rate": math.inf}, "learning_rate (inf)"),
        ({"learning_rate": math.nan}, "learning_rate (nan)"),
        ({"seed": -1}, "seed (-1)"),
    ],
    ids=str,
)
def test_a_schedule_out_of_range_is_refused_in_one_line(settings, said):
    with pytest.raises(InputError) as caught:
        Schedule(**settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_warm_up_takes_its_images_whatever_the_budget():
    short, long = (Schedule(budget=n, learning_rate=2.0, warmup_images=500, decay=0.0) for n in (1000, 1_000_000))
    assert 0 < short.rate(0) < 0.01 and short.rate(500) == 2.0
    assert short.rate(250) == pytest.approx(1.0, rel=0.01)
    assert long.rate(500) < 0.3 and long.rate(10_000) == 2.0  # the share of the budget is more


def test_the_rate_rises_again_from_where_it_last_rose():
    schedule = Schedule(budget=1000, learning_rate=2.0, warmup=0.1, decay=0.0)
    assert [schedule.rate(n, warm_from=500) for n in (500, 550, 600, 1000)] == pytest.approx(
        [schedule.rate(n) for n in (0, 50, 100, 1000)]
    )


def test_progress_ends_at_one_and_a_warm_up_without_a_share_is_over():
    schedule = Schedule(budget=100, validate_every=40)
    assert [schedule.progress(n) for n in (0, 50, 100, 120)] == [0, 0.5, 1, 1]
    assert [schedule.leg_end(n) for n in (0, 39, 40, 80)] == [40, 40, 80, 100]
    assert [warmed_up(p, 0.2) for p in (0, 0.1, 0.2, 1)] == [0, 0.5, 1, 1] and warmed_up(0, 0) == 1


def test_positions_are_logged_exactly_beyond_the_whole_numbers_of_float32():
    module, logged = attached(vae()), {}
    module.images_seen = 2**24 + 1
    module.log = lambda name, value, **options: logged.update({name: value.item()})
    module.log_position()
    assert logged == {"step": 2**24 + 1}


@pytest.mark.parametrize("every", [0, 4, 1000])
@pytest.mark.parametrize(("device", "number", "last", "looks"), [
    ("cpu", 3, False, True),
    ("cuda:0", PATIENCE - 1, False, False),
    ("cuda:0", PATIENCE, False, True),
    ("cuda:0", 3, True, True),
])  # fmt: skip
def test_skipped_steps_end_a_run_whatever_is_logged(every, device, number, last, looks):
    settings = {"log_every_n_steps": every, "precision": "32-true", "default_root_dir": "none", "is_last_batch": last}
    module = attached(vae(), **settings)
    module.log = lambda *args, **options: None
    module.skips.copy_(torch.tensor([30, PATIENCE]))
    module._device, module.images_seen = torch.device(device), number * STEP  # where an accelerator must not wait
    with pytest.raises(InputError, match=f"{PATIENCE} steps in a row") if looks else nullcontext():
        module.on_train_batch_end(None, {"image": torch.zeros(STEP, 3, 32, 32)}, 0)


def test_gathered_rows_are_in_the_order_of_the_global_batch_and_own_ones_have_all_of_the_gradient():
    module, rows = attached(vae(), world=2), torch.tensor([[1.0], [2.0]], requires_grad=True)
    module.all_gather = lambda own: torch.stack([own, 10 * own])  # this is the first of two processes
    whole = module.gather_global(rows)
    assert whole.flatten().tolist() == [1, 10, 2, 20]
    whole.sum().backward()
    assert rows.grad.flatten().tolist() == [2, 2]
