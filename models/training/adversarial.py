"""The base of the GANs: a step of D and one of G on the same scenes, and the margin between photographs and draws."""

from abc import abstractmethod
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.special import ndtr

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.core.randomness import Noise
from degrain.models.evaluation.efficientnet import EfficientNetLevels
from degrain.models.gan.augment import offsets, translated
from degrain.models.gan.discriminator import Discriminator
from degrain.models.gan.feature_discriminator import FeatureDiscriminator
from degrain.models.gan.objective import (
    SPREAD_DRAWS,
    AdversarialLoss,
    Critic,
    Scene,
    discriminator_objective,
    generator_objective,
    spread_terms,
)
from degrain.models.inference.checkpoint import Card
from degrain.models.inference.pipeline import DEQUANTISING_STREAM
from degrain.models.training.contradictions import refuse_adversary
from degrain.models.training.image_module import Batch, ImageModule
from degrain.models.training.schedule import Schedule
from degrain.models.training.update import MovingAverage, Update, adam
from degrain.models.vae.likelihood import dequantised

FEATURES_OF_D = "efficientnet-lite1"
"""The network of the second discriminator's features: not the one that the metrics have by default."""

SHIFT_OF_FEATURES = 8
"""The second discriminator sees images shifted by up to this part of the side: its heads would soon know them all."""

MARGIN_IMAGES = 512
"""Training images whose margin is measured at every validation."""


class AdversarialModule(ImageModule):
    """A generator G, whose moving average is what counts, against a discriminator D.

    A recipe makes both networks and the average, and says in `scenes` what they see. Arguments are those of GANModule;
    with spread_every 0 there is no spread term.
    """

    discriminator: Discriminator | None
    ema: MovingAverage
    waiting = False  # whether G waits in this step

    def __init__(
        self,
        schedule: Schedule,
        loss: AdversarialLoss | Literal["l2"],
        penalty_weight: float,
        penalty_every: int,
        translate: float,
        translate_from: int,
        feature_weight: float,
        ema_share: float,
        spread_weight: float = 0.0,
        spread_every: int = 0,
    ) -> None:
        super().__init__(schedule)
        refuse_adversary(penalty_weight, penalty_every, translate, translate_from, feature_weight, ema_share)
        self.loss, self.penalty_weight, self.penalty_every = loss, penalty_weight, penalty_every
        self.translate, self.translate_from, self.ema_share = translate, translate_from, ema_share
        self.feature_weight = feature_weight
        self.spread_weight, self.spread_every = spread_weight, spread_every
        self.feature_discriminator = None
        if feature_weight:
            self.feature_discriminator = FeatureDiscriminator(EfficientNetLevels(FEATURES_OF_D))

    @property
    @abstractmethod
    def player(self) -> nn.Module:
        """The network that plays G."""

    @abstractmethod
    def scenes(self, batch: Batch, draws: int) -> list[Scene]:
        """Return photographs, p(x|z) and so many draws from it: one scene, or one for each `data.micro_batch_size`."""

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let G wait for new discriminators: from an export on, while the learning rate rises; then it rises for G too.

        A new D is fooled by what would undo G, and an export, the average of a long run, has much to lose.
        """
        new = self.warm_from and not self.trainer.optimizers[-1].state  # G has no moments: it has not moved since
        self.waiting = new and self.discriminator is not None
        if self.waiting and self.images_seen >= self.warm_from + self.schedule.rise:
            self.warm_from, self.waiting = self.images_seen, False
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one step of D, then one of G against it, on the same photographs and draws."""
        number = self.steps_done(batch)
        penalty = 0 if number % self.penalty_every else self.penalty_weight * self.penalty_every
        spread = self.spread_due(number)
        if self.feature_discriminator is not None:
            self.feature_discriminator.follow()
        scenes = self.scenes(batch, SPREAD_DRAWS if spread else 1)  # photographs, p(x|z), draws from it
        if len(scenes) == 1 and not self.waiting:
            # The images are made once, with a graph for both steps; of several pieces for each step.
            images = scenes[0].generate()  # (K, B, 3, H, W)
            scenes = [replace(scenes[0], generate=lambda: images)]
        d, g = (Update(self, optimizer) for optimizer in self.optimizers())

        for scene in d.over(scenes):  # D: residuals of photographs against those of G
            with torch.no_grad():
                fake = scene.residual(scene.generate()[0])
            d.backward(*self.d_objective(scene, fake, penalty))
        d.step()
        if self.waiting:
            self.count_images(batch, d.skipped)
            self.log_terms("train", d.terms | {"d_gradient_norm": d.norm})
            return

        for scene in g.over(scenes):  # G: against D as it now is, and Var_eps[G] against sigma^2
            images = scene.generate()
            fake = scene.residual(images[0])
            loss, terms = self.g_objective(scene, fake)
            if spread:
                terms |= spread_terms(images, scene.p.std)
                loss = loss + self.spread_weight * self.spread_every * terms["spread"].mean()
            g.backward(loss, terms)
        g.step(unless=d.skipped)  # G would learn from logits that were not finite

        self.count_images(batch, g.skipped)
        self.average(batch, g.skipped)
        self.log_terms("train", d.terms | g.terms | {"d_gradient_norm": d.norm, "g_gradient_norm": g.norm})

    def d_objective(self, scene: Scene, fake: Tensor, penalty: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of both discriminators, (), and its terms, (B,), for residuals of G."""
        loss, terms = discriminator_objective(scene.critic, self.loss, scene.real, fake, scene.p, penalty)
        if scene.feature_critic is not None:
            more, its = discriminator_objective(scene.feature_critic, self.loss, scene.real, fake, scene.p, 0)
            loss, terms["feature_margin"] = loss + self.feature_weight * more, its["margin"]
        return loss, terms

    def g_objective(self, scene: Scene, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return G's loss against both discriminators, (), and its terms, (B,), for residuals of G."""
        loss, terms = generator_objective(scene.critic, self.loss, scene.real, fake, scene.p)
        if scene.feature_critic is not None:
            more, its = generator_objective(scene.feature_critic, self.loss, scene.real, fake, scene.p)
            loss, terms["feature_g_loss"] = loss + self.feature_weight * more, its["g_loss"]
        return loss, terms

    def average(self, batch: Batch, skipped: Tensor) -> None:
        """Move the average towards G after a step that counts as seen; its half-life is `ema_share` of the images seen.

        So its length grows with the run, by a power law (Karras et al. 2024, "Analyzing and improving the training
        dynamics of diffusion models"): G after n images has the weight n^(ln 2 / ema_share - 1).
        """
        keep = 0.5 ** (self.global_batch(batch) / (self.ema_share * self.images_seen))
        self.ema.update(self.player, keep, unless=skipped)

    def feature_critic(self, noise: Noise, p: Gaussian) -> Critic | None:
        """Return the discriminator on features, if there is one, behind a shift of image and mean alike, by noise."""
        if self.feature_discriminator is None:
            return None
        most = p.mean.shape[-1] // SHIFT_OF_FEATURES
        moved = partial(translated, offsets=offsets(noise.uniform(len(p.mean), 2), most), most=most)
        with torch.no_grad():
            beside = self.feature_discriminator.levels(moved(p.mean))
        return lambda residual, p: self.feature_discriminator(moved(p.mean + p.std * residual), beside)

    def note(self) -> str | None:
        start, budget, notes = self.translate_from, self.schedule.budget, [super().note()]
        if self.translate and start >= budget:
            notes += [f"model.translate_from {start:,} is not below model.budget {budget:,}: translate does nothing"]
        if self.discriminator is not None and self.loaded_card is not None and self.loaded_card.exported is not None:
            notes += [f"an export holds no discriminators: new ones learn alone for {self.schedule.rise:,.0f} images"]
            if self.images_seen + self.schedule.rise >= budget:
                notes += [
                    "that is all this run: the images stay as they are; give more model.budget or less model.warmup"
                ]
        return "\n".join(filter(None, notes)) or None

    def spread_due(self, number: int) -> bool:
        """Return whether step `number` has the spread term."""
        return self.spread_every > 0 and number % self.spread_every == 0

    def critic(self, noise: Noise, images: int, side: int) -> Critic:
        """Return D, or from `translate_from` on D behind a shift of residual and condition alike, by noise."""
        most = int(self.translate * side)
        if not most or self.images_seen < self.translate_from:
            return self.discriminator
        moved = partial(translated, offsets=offsets(noise.uniform(images, 2), most), most=most)
        return lambda residual, p: self.discriminator(moved(residual), Gaussian(moved(p.mean), moved(p.logstd)))

    @abstractmethod
    def held_out_scene(self, batch: Batch) -> Scene:
        """Return a scene as in training, but with noise that depends on an image's number alone, and D itself."""

    def dequantised_residual(self, x: Tensor, p: Gaussian, batch: Batch) -> Tensor:
        """Return residuals of images (B, 3, H, W) with the noise of their numbers: D sees no 8-bit grid."""
        return (dequantised(x, ndtr(self.held_out_noise(batch, DEQUANTISING_STREAM, x.shape[1:]))) - p.mean) / p.std

    def margins(self, scene: Scene) -> dict[str, Tensor]:
        """Return `margin`, D(photograph) - D(draw of G itself, not of its average), (B,); nothing without a D."""
        if self.discriminator is None:
            return {}
        fake = scene.residual(scene.generate()[0])
        return {"margin": scene.critic(scene.real, scene.p) - scene.critic(fake, scene.p)}

    def epoch_metrics(self, stage: str) -> dict[str, Tensor]:
        """Return in `fit` `margin_train`, the margin of MARGIN_IMAGES training images, by the weights of this moment.

        Far above `margin`, that of held-out images by the same weights, it says that D memorises the photographs.
        """
        if self.discriminator is None or self.trainer.state.fn != "fit":  # an export's; no training images
            return {}
        data = self.trainer.datamodule
        numbers = range(min(MARGIN_IMAGES, len(data.datasets["train"])))
        found = []
        for batch in data.numbered_dataloader("train", numbers):
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            with self.trainer.precision_plugin.forward_context():
                found.append(self.margins(self.held_out_scene(batch))["margin"].float())
        return {"margin_train": torch.cat(found).mean()}

    def check(self, card: Card, state: dict[str, Tensor], path: str) -> None:
        theirs = any(name.startswith("feature_discriminator.") for name in state)
        if card.exported is None and theirs != (self.feature_discriminator is not None):
            has, way = ("a", "above 0") if theirs else ("no", "0")
            raise InputError(
                f"checkpoint {path}: has {has} discriminator on features; give --model.feature_weight {way}, or -c "
                f"with the config.yaml of its run"
            )
        super().check(card, state, path)

    def load_export(self, card: Card, state: dict[str, Tensor], path: str, fit: bool) -> None:
        super().load_export(card, state, path, fit)
        self.player.load_state_dict(self.ema.module.state_dict())
        if not fit:
            self.discriminator = None  # an export has none, and a new one's margin would say nothing

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rate = self.schedule.learning_rate
        judges = nn.ModuleList([self.discriminator, *filter(None, [self.feature_discriminator])])
        return [adam(network, rate, betas=(0.0, 0.99)) for network in (judges, self.player)]
