"""Write an export: one file, or a folder as the Hugging Face Hub wants it, weights and a model card."""

from pathlib import Path

from degrain.models.core.files import replacing
from degrain.models.inference.checkpoint import SUFFIX, Card, content_of, read_checkpoint, to_export
from degrain.models.inference.hub import WEIGHTS

CARD = "README.md"

NETWORKS = {
    "vae": "A VAE whose decoder gives a mean and a standard deviation for every pixel (stage 1).",
    "gan": "A VAE whose decoder gives a mean and a standard deviation for every pixel, and a GAN that turns draws\n"
    "from that distribution into sharp images (stage 2).",
    "plain_gan": "The generator of a plain GAN, a control without a VAE.",
}
"""Stage -> what its networks are."""

OWN, OTHER = "mit", "other\nlicense_name: as-the-training-images"
"""Licences in the metadata: of weights trained on degrain's own drawings, and on all other images."""

TERMS = {
    OWN: "MIT, as degrain's code, which has drawn the training images.",
    OTHER: "The code of degrain is MIT. The weights may be used as the terms of the training images permit; those of\n"
    "CelebA permit non-commercial research alone. Before you publish this file, name these terms here and in its\n"
    "first lines.",
}

TEXT = """---
license: {licence}
library_name: degrain
pipeline_tag: unconditional-image-generation
tags:
- degrain
- vae
- gan
- uncertainty
---

# degrain, {size}x{size} pixels

{networks}

## Use

Install degrain from its repository. Instead of `hf://USER/NAME` the path of this folder does as well.

```python
import degrain

model = degrain.load("hf://USER/NAME")
model.sample(16, seed=0).show()
```

```sh
python sample.py hf://USER/NAME --n 16 --seed 0 --out samples.png
```

## Training

| | |
|---|---|
{facts}

`model.safetensors` holds {content}.
Its metadata have the architecture, and a SHA-256 of metadata and weights, which is checked when it is read.

## Intended use

Research and teaching: generative models, uncertainty of pixels, denoising. Not for pictures that pass for photographs
of real people, and not for decisions about people.

## Limits

- Broken images. Of the draws of degrain's own model of CelebA at 64 pixels nearly half had a visible defect (slipped
  mouths, missing eyes, dark shards), and about a tenth of the reconstructions.
- Images are {size}x{size}, and of the kind that it was trained on, with its biases: who is rare there is drawn badly.
- The std is that of a pixel given the code z, on images like those of the training. It does not tell how far a
  reconstruction of another image can be trusted.
- A reconstruction is a plausible image, not a restored one: details come from the noise.

## Licence

{terms}
"""


def write_export(checkpoint: str | Path, target: str) -> None:
    """Write the export of a checkpoint, and print what was written and its size.

    Args:
        checkpoint: of any stage, or an export.
        target: FILE.safetensors, or a folder for model.safetensors and README.md, the model card.

    Raises:
        InputError: the checkpoint cannot be read, or the target cannot be written.
    """
    card, state = read_checkpoint(checkpoint)
    content, single = to_export(card, state), target.endswith(SUFFIX)
    file = Path(target) if single else Path(target) / WEIGHTS
    with replacing(file) as part:
        part.write_bytes(content)
    print(f"exported: {file} ({len(content):,} bytes)")
    if not single:
        with replacing(Path(target) / CARD) as part:
            part.write_text(model_card(card))
        print(f"model card: {Path(target) / CARD}; complete it, then: hf upload USER/NAME {target}")


def model_card(card: Card) -> str:
    """Return the model card of an export in the hub's format: metadata as YAML, then Markdown."""
    data = card.data or {}
    images = data.get("images") or {}
    facts = {
        "stage": card.stage,
        "training images": f"{images['train']:,}" if "train" in images else None,
        "data": data.get("source"),
        "crop": data.get("crop"),
        "images seen": f"{card.images_seen:,} of {card.budget:,}" if card.budget else f"{card.images_seen:,}",
        "latents": (card.vae or card.generator or {}).get("latent"),
        "loss": card.loss if card.stage != "vae" else None,
        "denoiser sees the noise": {True: "yes", False: "no"}[card.noise] if card.denoiser else None,
    }
    licence = OWN if str(data.get("source")).startswith("portraits-") else OTHER
    return TEXT.format(
        licence=licence,
        terms=TERMS[licence],
        size=card.size,
        networks=NETWORKS[card.stage],
        facts="\n".join(f"| {name} | {value} |" for name, value in facts.items() if value is not None),
        content=content_of(card),
    )
