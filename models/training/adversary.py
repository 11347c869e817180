"""What the GAN that denoises and its control without a VAE share: the steps of D and G, penalties, the average of G."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.core.errors import InputError
from models.core.gaussian import Gaussian
from models.gan.discriminator import Discriminator
from models.gan.objective import AdversarialLoss, discriminator_loss, generator_loss, gradient_penalty, translated
from models.inference.checkpoint import Card
from models.training.update import SteppedModule
from models.vae.likelihood import dequantised

DRAWS = 2
"""Draws of each z in a step with a variance over noise: the least that it can be estimated from."""


@dataclass(frozen=True)
class Scene:
    """What both players see of B images.

    Attributes:
        real: residuals of photographs, (B, C, H, W).
        draws: images of G, K for each p, (K, B, C, H, W), in [0, 1] units.
        p: the Gaussians that residuals are of, (B, C, H, W).
        offsets: by how many pixels D sees each of them moved, (B, 2), or None where it does not.
    """

    real: Tensor
    draws: Tensor
    p: Gaussian
    offsets: Tensor | None = None

    def moved(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as D sees them; of one scene all are moved alike."""
        return images if self.offsets is None else translated(images, self.offsets)

    @cached_property
    def positives(self) -> Tensor:
        """What D sees of photographs, (B, C, H, W)."""
        return self.moved(self.real)

    @cached_property
    def negatives(self) -> Tensor:
        """What D sees of the draws: their residuals, (K B, C, H, W), of the B conditions one after another."""
        return torch.cat([self.moved(draw) for draw in (self.draws - self.p.mean) / self.p.std])

    @cached_property
    def condition(self) -> Gaussian:
        """p as D sees it."""
        return Gaussian(self.moved(self.p.mean), self.moved(self.p.logstd))

    @cached_property
    def pair(self) -> Gaussian:
        """The same for each draw."""
        return self.condition.repeat(len(self.draws))


Scenes = Callable[[dict[str, Tensor]], Scene]


class Adversary(SteppedModule):
    """A generator G, whose moving average is what counts, against a discriminator D.

    D judges residuals (image - mean)/std under a Gaussian p: the decoder's of each image, or one for all images. A
    recipe says what p is, which network plays G, and how it draws; and it makes `discriminator` and `ema`.

    Args:
        loss: what both play.
        penalty_weight: gamma, the weight of the gradient penalties: R1, and R2 if the loss is relativistic.
        penalty_every: steps between gradient penalties, whose weight is multiplied by it.
        translate: share of the side by which D sees images moved at most, 0 for none.
        ema_images: half-life of G's moving average, in images.
        clock: see Recipe.

    Raises:
        InputError: an argument out of range.
    """

    discriminator: Discriminator | None
    ema: AveragedModel

    def __init__(
        self,
        loss: AdversarialLoss,
        penalty_weight: float,
        penalty_every: int,
        translate: float,
        ema_images: int,
        *clock: Any,
    ) -> None:
        super().__init__(*clock)
        if penalty_weight < 0:
            raise InputError(f"model: penalty_weight ({penalty_weight}) must not be negative")
        if not 0 <= translate <= 0.5:
            raise InputError(f"model: translate ({translate}) is a share of the side, from 0 to 0.5")
        if min(penalty_every, ema_images) < 1:
            raise InputError(f"model: penalty_every ({penalty_every}) and ema_images ({ema_images}) must be at least 1")
        self.loss, self.penalty_weight, self.penalty_every = loss, penalty_weight, penalty_every
        self.translate, self.ema_images, self.number_of_step = translate, ema_images, 0

    # What a recipe says.

    @property
    @abstractmethod
    def player(self) -> nn.Module:
        """The network that plays G."""

    @abstractmethod
    def condition(self, x: Tensor, rng: torch.Generator) -> Gaussian:
        """The Gaussian that each image's residual is of, mean and logstd (B, 3, H, W)."""

    @abstractmethod
    def draws(self, p: Gaussian, rng: torch.Generator) -> Tensor:
        """Images of G for a training step, K for each p, (K, B, C, H, W), in [0, 1] units."""

    # Loss terms.

    def penalties(self, real: Tensor, fake: Tensor, p: Gaussian) -> dict[str, Tensor]:
        """R1 on the photographs' residuals and R2 on G's, per sample; in float32 whatever the precision.

        The classic loss has R1 alone, as is usual (Mescheder et al. 2018).
        """
        leaves = {"r1": real.detach().requires_grad_()}
        if self.loss == "relativistic":
            leaves["r2"] = fake.detach().requires_grad_()
        with torch.autocast(self.device.type, enabled=False):
            return {name: gradient_penalty(self.discriminator(leaf, p), leaf) for name, leaf in leaves.items()}

    def beside(self, draws: Tensor, p: Gaussian) -> tuple[Tensor | float, dict[str, Tensor]]:
        """What G's loss has beside the adversarial one, weighted; and what is to be logged of it."""
        return 0.0, {}

    # Training.

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.number_of_step = self.images_seen // self.global_batch(batch)
        terms = self.play(batch, self.scenes(batch))
        self.count_step(self.finite)
        if self.finite:
            self.ema.multi_avg_fn = get_ema_multi_avg_fn(0.5 ** (self.global_batch(batch) / self.ema_images))
            self.ema.update_parameters(self.player)
        self.tick(batch)
        self.log_terms("train", terms)

    def due(self, every: int) -> bool:
        """Whether what comes every so many steps comes in this one; a run that goes on keeps the order."""
        return self.number_of_step % every == 0

    def scene(self, batch: dict[str, Tensor]) -> Scene:
        """What the players see of a batch or a piece of one."""
        x, rng = self.pixels(batch), self.train_rng()
        p = self.condition(x, rng)
        # Dequantised, or D would tell photographs by the 8-bit grid.
        real = (dequantised(x, self.uniform(x.shape, rng)) - p.mean) / p.std
        draws = self.draws(p, rng)
        return Scene(real, draws, p, self.offsets(x, rng))

    def offsets(self, x: Tensor, rng: torch.Generator) -> Tensor | None:
        """How far D shall see each image of a batch moved, uniform up to `translate` of the side, (B, 2)."""
        most = int(self.translate * x.shape[-1])
        if not most:
            return None
        return (self.uniform((len(x), 2), rng) * (2 * most + 1)).floor() - most

    def scenes(self, batch: dict[str, Tensor]) -> Scenes:
        """The scene of each piece: made once, or of several pieces anew for each player, as its graph is large."""
        if self.pieces > 1:
            return self.scene
        scene = self.scene(batch)
        return lambda piece: scene

    def play(self, batch: dict[str, Tensor], scenes: Scenes) -> dict[str, Tensor]:
        """A step of D, then one of G, on the same images.

        Where D's is not finite G has none: on the same images it would learn from the logits that were not. Where G's
        alone is not, D keeps its step, which was sound, and the step as a whole counts as skipped.
        """
        d_terms = self.discriminator_step(batch, scenes)
        return {**d_terms, **self.generator_step(batch, scenes)} if self.finite else d_terms

    def discriminator_step(self, batch: dict[str, Tensor], scenes: Scenes) -> dict[str, Tensor]:
        """One step of D."""
        optimizer, _ = self.optimizers()
        return self.step(optimizer, batch, lambda piece: self.discriminator_loss(scenes(piece)))

    def discriminator_loss(self, scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
        """D's loss, with its penalties where they are due, and what is to be logged."""
        fake = scene.negatives.detach()
        real_logits = self.discriminator(scene.positives, scene.condition).repeat(len(scene.draws))
        fake_logits = self.discriminator(fake, scene.pair)
        adversarial = discriminator_loss(self.loss, real_logits, fake_logits)
        terms = {"margin": real_logits - fake_logits, "d_loss": adversarial}
        if not self.due(self.penalty_every):
            return adversarial.mean(), terms
        penalties = self.penalties(scene.positives, fake[: len(scene.real)], scene.condition)
        weighted = self.penalty_weight * self.penalty_every * sum(penalties.values()).mean()
        return adversarial.mean() + weighted, terms | penalties

    def generator_step(self, batch: dict[str, Tensor], scenes: Scenes) -> dict[str, Tensor]:
        """One step of G, against the discriminator as it now is."""
        _, optimizer = self.optimizers()
        return self.step(optimizer, batch, lambda piece: self.generator_loss(scenes(piece)))

    def generator_loss(self, scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
        """G's loss, and what is to be logged."""
        with torch.no_grad():
            real_logits = self.discriminator(scene.positives, scene.condition).repeat(len(scene.draws))
        adversarial = generator_loss(self.loss, real_logits, self.discriminator(scene.negatives, scene.pair))
        beside, terms = self.beside(scene.draws, scene.p)
        return adversarial.mean() + beside, {"g_loss": adversarial, **terms}

    # Validation, optimizers.

    def margins(self, real: Tensor, fake: Tensor, p: Gaussian) -> dict[str, Tensor]:
        """`margin`, D(real) - D(fake), (B,), for residuals under the same p; nothing where there is no D."""
        if self.discriminator is None:
            return {}
        return {"margin": self.discriminator(real, p) - self.discriminator(fake, p)}

    def take_over(self, card: Card, state: dict[str, Tensor], path: str) -> None:
        super().take_over(card, state, path)
        self.discriminator = None  # an export has none, and a new one's margin would say nothing

    def average(self) -> AveragedModel:
        """A moving average of G, which starts as G itself."""
        return AveragedModel(self.player).requires_grad_(False)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.adam(network, betas=(0.0, 0.99)) for network in (self.discriminator, self.player)]
