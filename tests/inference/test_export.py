"""Exports: the same draws from half a file, taken everywhere like a checkpoint; what is not ours is refused."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

import sample
from models.core.errors import InputError
from models.core.layers import PyramidConfig
from models.inference.checkpoint import FLOAT32, PREFIXES, packed, read_checkpoint, to_safetensors
from models.inference.pipeline import load_pipeline
from models.training import GANModule, VAEModule
from models.vae.latent_prior import LatentPrior, Mixture
from models.vae.network import VAEConfig
from tests import tiny
from tests.benchmarks.memory import card, networks, resolved
from tests.conftest import Trained
from tests.inference.test_checkpoint import refusal
from tests.test_sample import images
from tests.tiny import BATCH, BUDGET, LEG, assert_equal_states, error_of, fit_error, stopped
from tests.training.test_recipes import rate_of

KINDS = ("vae", "learned", "gan")
GOES_ON = ("--model.budget", str(BUDGET + LEG), "--model.warmup", "0.3", "--model.decay", "0.3")


@pytest.fixture(scope="module")
def checkpoints(trained: Trained, learned: Path) -> dict[str, Path]:
    """Return a checkpoint by kind: stage 1, stage 1 with a learned prior, stage 2."""
    return {"vae": trained.vae / "last.ckpt", "learned": learned, "gan": trained.gan / "last.ckpt"}


@pytest.fixture(scope="module")
def exports(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export each checkpoint."""
    folder = tmp_path_factory.mktemp("exports")
    for kind, checkpoint in checkpoints.items():
        sample.main([str(checkpoint), "--export", f"{folder}/{kind}.safetensors"])
    return {kind: folder / f"{kind}.safetensors" for kind in checkpoints}


@pytest.fixture
def root(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with the caches and no run."""
    (tmp_path / "cache").symlink_to(trained.root / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what travels


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_says_what_it_is_to_any_reader_of_its_format(checkpoints, exports, kind):
    saved = torch.load(checkpoints[kind], weights_only=True)
    tensors = safetensors.torch.load_file(exports[kind])
    with safe_open(exports[kind], "pt") as file:
        said = json.loads(file.metadata()["degrain"])
    networks = {"vae", "prior"} | ({"ema"} if kind == "gan" else set())
    assert {name.split(".")[0] for name in tensors} == networks and "ema.n_averaged" not in tensors
    assert any(name.startswith("prior.mixture.") for name in tensors) == (kind == "learned")
    for name, value in tensors.items():
        whole = value.ndim < 2 or name == FLOAT32
        assert value.dtype == (saved["state_dict"][name].dtype if whole else torch.float16)
        assert torch.equal(value, saved["state_dict"][name].to(value.dtype))
    kept = ("stage", "size", "images_seen", "vae", "denoiser", "data")
    assert {name: said[name] for name in kept} == json.loads(json.dumps({k: saved["degrain"][k] for k in kept}))
    assert said["data"]["source"] == "portraits-s0" and said["images_seen"] == BUDGET
    assert "float16" in said["exported"] and ("moving average" in said["exported"]) == (kind == "gan")


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_in_wandb_does_not_travel(checkpoints, exports, kind):
    run = torch.load(checkpoints[kind], weights_only=True)["degrain"]["tracked_run"]
    assert run and run.encode() not in exports[kind].read_bytes()
    assert read_checkpoint(exports[kind])[0].tracked_run is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_read_like_a_checkpoint(checkpoints, exports, kind):
    (theirs, state), (ours, halved) = (read_checkpoint(files[kind]) for files in (checkpoints, exports))
    assert replace(ours, exported=None) == replace(theirs, tracked_run=None)
    assert ours.vae_config() == theirs.vae_config()
    assert all(value.dtype == state[name].dtype for name, value in halved.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_export_of_an_export_is_the_same_file(exports, root, kind, capsys):
    sample.main([str(exports[kind]), "--export", "new/again.safetensors"])
    content = exports[kind].read_bytes()
    assert Path("new/again.safetensors").read_bytes() == content
    assert capsys.readouterr().out == f"exported: new/again.safetensors ({len(content):,} bytes)\n"
    assert [path.name for path in Path("new").iterdir()] == ["again.safetensors"]
    assert not list(root.glob("*.png"))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_those_of_the_checkpoint_within_a_level(checkpoints, exports, root, kind):
    whole, halved = (load_pipeline(files[kind])[1].draw(0, range(16)) for files in (checkpoints, exports))
    assert whole.keys() == halved.keys()
    for row in whole:
        levels = [(255 * rows[row]).round() for rows in (whole, halved)]
        assert (levels[0] - levels[1]).abs().max() <= 1 and levels[0].std() > 1, row
    drawn, expected = (images(files[kind], "--n", "4", "--row", "mean") for files in (exports, checkpoints))
    assert np.abs(drawn.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("with_mixture", [False, True])
def test_densities_survive_where_latents_are_correlated(with_mixture):
    """The prior's Cholesky factor stays in float32, or its rounding would be divided by the smallest std."""
    prior = LatentPrior(16)
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = mixing @ torch.diag(torch.logspace(1, -6, 16, dtype=torch.float64)) @ mixing.T
    prior.cholesky.copy_(torch.linalg.cholesky(covariance))
    prior.mixture = Mixture(3, 16) if with_mixture else None
    if with_mixture:
        prior.mixture.factors.mul_(0.7).add_(0.1 * torch.randn(3, 16, 16).tril())
    z = prior(torch.randn(64, 16, generator=torch.Generator().manual_seed(1)))
    before = prior.log_density(z)
    state = {f"prior.{name}": value for name, value in prior.state_dict().items()}
    state = {name: packed(name, value).to(value.dtype) for name, value in state.items()}
    prior.load_state_dict({name.removeprefix("prior."): value for name, value in state.items()})
    torch.testing.assert_close(prior.log_density(z), before, rtol=0, atol=0.02 if with_mixture else 1e-3)
    prior.cholesky.copy_(prior.cholesky.half())
    assert (prior.log_density(z) - before).abs().mean() > 1


def test_what_leaves_the_range_of_float16_stays_whole():
    large = torch.tensor([[1.0, 70_000.0]])
    assert torch.equal(packed("vae.w", large), large)
    assert packed("vae.w", large / 2).dtype == torch.float16


def test_both_small_models_stay_below_12_megabytes():
    gan, made = resolved("small", "gan")["model"]["init_args"], card("small", 64)
    nets = networks("small", 64)
    prior = LatentPrior(made.vae["latent"])
    prior.mixture = Mixture(10, made.vae["latent"])
    state: dict[str, Tensor] = {}
    for name, net in {"vae": nets["vae"], "prior": prior, "denoiser": nets["denoiser"]}.items():
        of_net = {PREFIXES[name] + key: value for key, value in net.state_dict().items()}
        state |= {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in of_net.items()}
    numbers = sum(value.numel() for value in state.values())
    content = to_safetensors(asdict(replace(made, stage="gan", denoiser=gan["denoiser"])), state)
    assert 5_000_000 < numbers and 2 * numbers < len(content) < 12_000_000


# --- what may be asked for


def test_out_beside_export_draws_too(checkpoints, root, capsys):
    command = [str(checkpoints["vae"]), "--n", "2", "--out", "two.npz", "--export", "vae.safetensors"]
    sample.main([*command, "--device", "cpu"])
    lines = r"exported: vae.safetensors \([\d,]+ bytes\)\ndrawn: 2 images, [\d.]+ images/s\nwrote: two.npz\n"
    assert re.fullmatch(lines, capsys.readouterr().out)
    assert np.array_equal(np.load("two.npz")["images"], images(checkpoints["vae"], "--n", "2"))


def test_what_is_there_is_replaced_on_request_alone(checkpoints, exports, root, capsys):
    Path("there.safetensors").write_bytes(b"mine")
    command = [str(checkpoints["vae"]), "--export", "there.safetensors"]
    for more in ([], ["--out", "new.png"]):
        line = error_of(capsys, lambda more=more: sample.main([*command, *more]))
        assert "there.safetensors exists; choose another --export or pass --overwrite true" in line
    assert Path("there.safetensors").read_bytes() == b"mine" and not Path("new.png").exists()
    sample.main([*command, "--overwrite", "true"])
    assert Path("there.safetensors").read_bytes() == exports["vae"].read_bytes()
    sample.main(["there.safetensors", "--export", "there.safetensors", "--overwrite", "true"])  # onto itself
    assert Path("there.safetensors").read_bytes() == exports["vae"].read_bytes()


# --- what is refused


def test_a_truncated_export_is_refused(exports, tmp_path):
    whole, path = exports["gan"].read_bytes(), tmp_path / "cut.safetensors"
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated or no checkpoint" in refusal(path)


def test_an_export_with_a_byte_changed_anywhere_is_refused(exports, tmp_path):
    whole, path = exports["learned"].read_bytes(), tmp_path / "damaged.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(0, header, 97), *range(header, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :])
        assert "cannot be read" in refusal(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "was not written by degrain"),
        ({"format": "pt"}, "was not written by degrain"),
        ({"degrain": "no JSON"}, "cannot be read"),
        ({"degrain": "[]"}, "cannot be read"),
        ({"degrain": "7"}, "cannot be read"),
        ({"degrain": '{"stage": "vae"}'}, "cannot be read"),
        ({"degrain": "[" * 100_000}, "cannot be read"),
    ],
    ids=["none", "other", "text", "list", "number", "no digest", "deep"],
)
def test_a_foreign_file_is_refused(tmp_path, capsys, metadata, said):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2)}, path, metadata)
    assert said in refusal(path)
    assert said in error_of(capsys, lambda: sample.main([str(path), "--out", f"{tmp_path}/s.png"]))
    config = tiny.write(tmp_path / "c.yaml", tiny.vae_config(tmp_path))
    assert said in fit_error(capsys, config, "--ckpt_path", str(path))


@pytest.mark.parametrize("change", ["field", "missing", "shape", "weight"])
def test_an_export_of_another_version_is_refused(exports, tmp_path, change):
    made, state = read_checkpoint(exports["learned"])
    fields, name = asdict(made), "prior.mixture.factors"
    if change == "field":
        fields["novel"] = 1
    elif change == "shape":
        state[name] = torch.zeros(3, 3)
    elif change == "weight":
        state["prior.novel"] = torch.zeros(1)
    else:
        del state[name]
    path = tmp_path / "other.safetensors"
    path.write_bytes(to_safetensors(fields, state))
    with pytest.raises(InputError, match="checkpoint .*other.safetensors: .* written by another version of degrain;"):
        load_pipeline(path)


# --- instead of a checkpoint


def test_stage_2_takes_stage_1_from_an_export(exports, learned, root):
    net = PyramidConfig((8, 8), patch=4)
    for kind in KINDS:
        module = GANModule(str(exports[kind]), 32, net, net)
        ours, theirs = module.vae.state_dict(), load_pipeline(exports[kind])[1].vae.state_dict()
        assert_equal_states(dict(ours), dict(theirs))
        assert ("learned" in module.prior.names) == (kind == "learned")
    folder = tiny.run(root, "gan", "--model.vae", str(exports["learned"]), "--model.budget", str(2 * BATCH))
    made = tiny.checkpoint(folder)
    assert made["degrain"]["exported"] is None and made["degrain"]["images_seen"] == 2 * BATCH
    assert all(value.dtype != torch.float16 for value in made["state_dict"].values())


@pytest.mark.parametrize(("stage", "subcommand"), [("vae", "test"), ("gan", "test"), ("gan", "validate")])
def test_an_export_is_measured_with_nothing_beside_it(checkpoints, exports, root, stage, subcommand):
    values = {}
    (root / "runs/vae").mkdir(parents=True)
    (root / "runs/vae/last.ckpt").symlink_to(checkpoints["vae"])  # which a config of stage 2 names
    for name, path in (("whole", checkpoints[stage]), ("halved", exports[stage])):
        folder = tiny.run(root, stage, "--name", name, "--ckpt_path", str(path), subcommand=subcommand)
        values[name] = json.loads((root / "runs" / name / "metrics.json").read_text())
        (root / "runs/vae/last.ckpt").unlink(missing_ok=True)
    assert not list(folder.glob("*.ckpt"))
    assert values["halved"]["images_seen"] == values["whole"]["images_seen"] == BUDGET
    measured = {name for name in values["whole"] if not name.endswith("margin")}  # there is no discriminator
    assert measured == values["halved"].keys() and len(measured) > 2
    for name in measured:
        assert values["halved"][name] == pytest.approx(values["whole"][name], rel=0.02, abs=0.02), name


def test_fit_goes_on_from_an_export_with_new_optimizers_and_after_a_kill(exports, root, capsys):
    options = ("--ckpt_path", str(exports["vae"]), *GOES_ON)
    whole = tiny.checkpoint(tiny.run(root, "vae", "--wandb", "offline", *options))
    said = f"going on from {exports['vae']}: its weights and 96 images seen, new optimizer states"
    assert capsys.readouterr().out.count(said) == 1
    (optimizer,) = whole["optimizer_states"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {LEG // BATCH}
    position = {"images_seen": BUDGET + LEG, "warm_from": BUDGET, "exported": None}
    assert whole["degrain"] == whole["degrain"] | position and whole["degrain"]["tracked_run"]
    _, before = read_checkpoint(exports["vae"])
    moved = [name for name, value in before.items() if not torch.equal(value, whole["state_dict"][name])]
    assert any(name.startswith("vae.encoder") for name in moved) and "prior.mean" in moved

    assert stopped(root, "vae", "Kill", BUDGET + 2 * BATCH, "--checkpoint_minutes", "0", *options) == 130
    assert tiny.checkpoint(root / "runs/mine")["degrain"]["images_seen"] == BUDGET + BATCH
    tiny.run(root, "vae", "--name", "mine", "--ckpt_path", "last", *GOES_ON)
    resumed = tiny.checkpoint(root / "runs/mine")
    for key in ("state_dict", "optimizer_states"):
        assert_equal_states(resumed[key], whole[key], key)
    assert resumed["degrain"] == whole["degrain"] | {"tracked_run": None}


def test_the_learning_rate_rises_again_from_an_export(exports):
    net = VAEConfig(4, PyramidConfig(**tiny.NET), PyramidConfig(**tiny.NET))
    new, late = (VAEModule(32, net, budget=960, warmup=0.1, decay=0.3) for _ in range(2))
    late.load_export(*read_checkpoint(exports["vae"]), str(exports["vae"]))
    for images_seen in (0, 48, 96, 200):
        new.images_seen, late.images_seen = images_seen, BUDGET + images_seen
        assert rate_of(late) == pytest.approx(rate_of(new))
    late.images_seen = 960
    assert rate_of(late) == 0


def test_a_finished_export_asks_for_a_larger_budget(exports, root, capsys):
    folder = tiny.run(root, "vae", "--ckpt_path", str(exports["vae"]))
    assert f"{exports['vae']} has seen 96 of 96 images: a larger --model.budget goes on" in capsys.readouterr().out
    assert not folder.exists()
