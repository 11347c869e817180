"""Bad configs and command lines: one line answers each, and nothing is changed."""

from functools import partial

import pytest

from tests.bad_input.cases import DATA, GAN, LAST, MODEL, VAE, Case, of_vae
from tests.bad_input.spoil import denied, holding

CASES = {
    "no file": Case("train fit -c absent.yaml", "absent.yaml"),
    "no YAML": Case(VAE, "Problems parsing config", holding("vae.yaml", b"model: [")),
    "a list": Case(
        VAE, "no mapping of names to values; take one of configs/", holding("vae.yaml", b"- name\n- model\n")
    ),
    "an empty file": Case(VAE, "no mapping of names to values; take one of configs/", holding("vae.yaml", b"")),
    "a binary file": Case(f"train fit -c {LAST} --name new", f"{LAST} is no text; give a YAML file"),
    "a folder": Case("train fit -c runs --name new", "runs"),
    "none": Case("train fit --name new", "model"),
    "an unreadable file": Case(
        VAE, "vae.yaml.*Permission denied|vae.yaml.*readable", fails=partial(denied, "vae.yaml")
    ),
    "a tag that would run code": Case(
        VAE,
        "Problems parsing config|could not determine",
        holding("vae.yaml", b"name: !!python/object/apply:os.mkdir [ran]"),
    ),
    "no subcommand": Case("train", "subcommand|fit"),
    "an unknown subcommand": Case("train tain", "tain.*fit.*validate.*test"),
    "an unknown key": of_vae("nmae", 1, "`nmae`; did you mean `name`"),
    "an unknown key of the model": of_vae(f"{MODEL}.budgte", 1, "`budgte`; did you mean `budget`"),
    "an unknown key of the data": of_vae(f"{DATA}.batchsize", 1, "`batchsize`; did you mean `batch_size`"),
    "an unknown key of a network": of_vae(f"{MODEL}.net.latents", 1, "`latents`; did you mean `latent`"),
    "an unknown key of a pyramid": of_vae(f"{MODEL}.net.encoder.widhts", 1, "`widhts`; did you mean `widths`"),
    "an unknown key of the Trainer": of_vae("trainer.presicion", 1, "`presicion`; did you mean `precision`"),
    "a typo on the command line": Case(f"{VAE} --nmae 1", "`nmae`; did you mean `name`"),
    "a typo of the model on the command line": Case(f"{VAE} --model.budgte 1", "`budgte`; did you mean `budget`"),
    "a typo of the data on the command line": Case(f"{VAE} --data.batchsize 1", "did you mean `batch_size`"),
    "a typo of a network on the command line": Case(f"{VAE} --model.net.encoder.widhts 1", "did you mean `widths`"),
    "a typo of the Trainer on the command line": Case(f"{VAE} --trainer.presicion 1", "did you mean `precision`"),
    "a parameter beside init_args": of_vae("model.init_arg", 1, "below `init_args`, its parameters"),
    "no such model": of_vae("model.class_path", "degrain.models.training.VEAModule", "VEAModule"),
    "no such data": of_vae("data.class_path", "degrain.data.datamodule.Portrait", "Portrait"),
    "a model that is none": of_vae("model.class_path", "torch.nn.Linear", "torch.nn.Linear"),
    "a string for a number": of_vae(f"{MODEL}.budget", "many", "budget"),
    "a string in a network": of_vae(f"{MODEL}.net.encoder.patch", "x", "patch"),
    "a string in the data": of_vae(f"{DATA}.batch_size", "x", "batch_size"),
    "a string in the Trainer": of_vae("trainer.log_every_n_steps", "x", "Expected a <class 'int'>. Got value: x"),
    "a list for the networks": of_vae(
        f"{MODEL}.net", [1, 2], r"model.net: \[1, 2\] is no mapping; give it latent, encoder, decoder"
    ),
    "a number for a pyramid": of_vae(f"{MODEL}.net.encoder", 8, "model.net.encoder: 8 is no mapping; give it widths"),
    "a fraction of images": of_vae(f"{MODEL}.budget", 1.5, "budget"),
    "a word of tracking": of_vae("wandb", "sometimes", "wandb"),
    "no name": Case("train fit -c vae.yaml", "name None: give the run a name", config={"name": ...}),
    "a name with a slash": Case("train fit -c vae.yaml --name a/b", "name a/b: give the run a name without slashes"),
    "a name that climbs out": Case("train fit -c vae.yaml --name ..", r"name \.\.: give the run a name"),
    "48 pixels": of_vae(f"{DATA}.size", 48, "image size 48: must be 32, 64, 128 or 256"),
    "no pixels": of_vae(f"{DATA}.size", 0, "image size 0: must be 32"),
    "more widths than levels": of_vae(f"{MODEL}.net.encoder.widths", [8] * 9, "9 widths, but 32 pixels"),
    "a width of 0": of_vae(f"{MODEL}.net.encoder.widths", [0], "widths and blocks must be positive"),
    "no latents": of_vae(f"{MODEL}.net.latent", 0, "latent 0 and neck 64: must be at least 1"),
    "more latents than memory": of_vae(f"{MODEL}.net.latent", 10**12, "out of memory .*; take a smaller network"),
    "a floor above the start": of_vae(f"{MODEL}.net.std_floor", 2.0, "std_floor 2.0 must lie between 0 and std_start"),
    "no budget": of_vae(f"{MODEL}.budget", 0, r"budget \(0\)"),
    "a share above 1": of_vae(f"{MODEL}.decay", 1.5, r"decay \(1.5\)"),
    "a negative rate": of_vae(f"{MODEL}.learning_rate", -1.0, r"learning_rate \(-1.0\) must be positive"),
    "a rate that is no number": of_vae(
        f"{MODEL}.learning_rate", float("nan"), r"learning_rate \(nan\) must be positive"
    ),
    "a KL weight with a learned std": of_vae(
        f"{MODEL}.rate_weight", 0.5, r"rate_weight \(0.5\) with net.std pixel: .*take rate_weight 1 or net.std fixed"
    ),
    "a balanced gradient with a fixed std": Case(
        f"{VAE} --model.net.std fixed --model.gradient faithful", "net.std is fixed; take gradient plain"
    ),
    "free bits of no posterior": Case(
        f"{VAE} --model.free_bits 1 --model.regulariser mmd", "take free_bits 0 or regulariser posterior"
    ),
    "pieces of a batch for a loss that couples its images": Case(
        f"{VAE} --model.free_bits 1 --data.micro_batch_size 4", r"free_bits couples the images .*micro_batch_size \(4\)"
    ),
    "a spread term with an L2 loss": Case(f"{GAN} --model.loss l2", r"take spread_weight 0 \(as configs/control_l2"),
    "a spread term without noise": Case(f"{GAN} --model.noise false", "take spread_weight 0 or noise true"),
    "a ratio of one draw": Case(f"{GAN} --model.ratio_draws 1", r"ratio_draws \(1\) at least 2"),
    "an accelerator that is none": Case(f"{VAE} --trainer.accelerator abacus", "abacus"),
    "a precision that is none": Case(f"{VAE} --trainer.precision 12", "precision"),
    "a negative seed": Case(f"{VAE} --seed -1", "--seed -1 is not in bounds, numpy accepts from 0 to 4294967295"),
    "a seed of the model": of_vae(f"{MODEL}.seed", 1, "no `seed` here: --seed N .* of model, data and Lightning"),
    "a seed of the data": of_vae(f"{DATA}.seed", 1, "no `seed` here: --seed N"),
    "Lightning's seed": of_vae("seed_everything", 1, "no `seed_everything` here: --seed N"),
    "a seed of the model on the command line": Case(f"{VAE} --model.seed 1", "no `seed` here: --seed N"),
    "a seed of the data on the command line": Case(f"{VAE} --data.seed 1", "no `seed` here: --seed N"),
    "Lightning's seed on the command line": Case(f"{VAE} --seed_everything 1", "no `seed_everything` here: --seed N"),
    "a name of another recipe": of_vae(f"{MODEL}.vae", 1, "unknown name `vae`; --help lists all names"),
    "a name that is far down": of_vae(f"{MODEL}.widths", [8], "`widths`; did you mean `net.decoder.widths`"),
    "a name of the model at the top": Case(f"{VAE} --validate_evry 8", "did you mean `model.validate_every`"),
    "a typo of the schedule": of_vae(f"{MODEL}.learnin_rate", 1, "`learnin_rate`; did you mean `learning_rate`"),
    "a class path from before": of_vae(
        "model.class_path", "models.training.VAEModule", "VAEModule is now degrain.models.training.VAEModule"
    ),
    "a toy's class path from before": of_vae(
        "model.class_path", "models.toys.CollapseModule", "is now degrain.models.toys.CollapseModule; change"
    ),
    "data's class path from before": of_vae(
        "data.class_path", "data.datamodule.ImageFolder", "is now degrain.data.datamodule.ImageFolder; change"
    ),
    "a class path from before on the command line": Case(
        f"{VAE} --model models.modules.PlainGANModule", "PlainGANModule is now degrain.models.training.PlainGANModule"
    ),
    "a word of the field": Case(f"{VAE} --model.beta 2", "unknown name `beta`; did you mean `rate_weight`"),
    "a typo of a word of the field": Case(f"{VAE} --model.betaa 2", "`betaa`; did you mean `rate_weight`"),
    "a word without its place": Case(f"{VAE} --beta 2", "`beta`; did you mean `model.rate_weight`"),
    "a word of another recipe": Case(f"{GAN} --model.beta 2", "unknown name `beta`; --help lists all names"),
    "a word of the data in the model": Case(f"{VAE} --model.bs 2", "`bs`; did you mean `data.batch_size`"),
    "a word far down": Case(f"{VAE} --z-dim 2", "`z-dim`; did you mean `model.net.latent`"),
    "a word far down in the model": of_vae(f"{MODEL}.latent_dim", 2, "`latent_dim`; did you mean `net.latent`"),
    "epochs": Case(f"{VAE} --epochs 2", "`epochs`; did you mean `model.budget`"),
    "the Trainer's epochs": Case(f"{VAE} --trainer.epochs 2", "`epochs`; did you mean `model.budget`"),
    "epochs in a network": of_vae(f"{MODEL}.net.epochs", 2, "`epochs`; did you mean `model.budget`"),
    "the Trainer's GPUs": Case(f"{VAE} --trainer.gpus 2", "`gpus`; did you mean `devices`"),
    "a resolution": Case(f"{VAE} --data.resolution 64", "`resolution`; did you mean `size`"),
    "a way to resume": Case(f"{VAE} --resume last", "`resume`; did you mean `ckpt_path`"),
    "a place for results": Case(f"{VAE} --output_dir x", "`output_dir`; did you mean `runs`"),
    "an option of another recipe": Case(f"{VAE} --vae x", "unknown name `vae`; --help lists all names"),
    "a recipe's option among the Trainer's": of_vae("trainer.vae", 1, "unknown name `vae`; --help lists all names"),
    "an overlay alone": Case(
        "train fit --name new --model.net.latent 2", "without a `class_path` of model: give a whole"
    ),
    "a number for a name": Case(
        "train fit -c vae.yaml", "value: 2024; it is to be text.*put it in quotes", config={"name": 2024}
    ),
    "a number for a folder": of_vae(f"{DATA}.cache", 1.5, "value: 1.5; it is to be text.*put it in quotes"),
    "null for a number": of_vae(f"{MODEL}.net.latent", None, "model.net.latent: null is no value of it; leave it out"),
    "null for a word": of_vae(f"{MODEL}.likelihood", None, "model.likelihood: null is no value of it; leave it out"),
    "null for the data": of_vae(f"{DATA}.batch_size", None, "data.batch_size: null is no value of it"),
    "null for the folder of runs": of_vae("runs", None, "config: runs: null is no value of it"),
    "null for the Trainer": of_vae("trainer", None, "config: trainer is empty; give it options or leave it out"),
    "no devices": Case(f"{VAE} --trainer.devices 0", "devices"),
    "the Trainer's clipping": Case(
        f"{GAN} --trainer.gradient_clip_val 1", "gradient_clip_val 1.0: take model.gradient_c"
    ),
    "the Trainer's accumulation": Case(
        f"{VAE} --trainer.accumulate_grad_batches 2", "accumulate_grad_batches 2: a step is data.batch_size images"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_changes_nothing(home, capsys, name):
    CASES[name].check(home, capsys)
