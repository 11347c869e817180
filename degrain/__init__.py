"""degrain: a VAE whose decoder gives a distribution for every pixel, and a GAN that denoises its samples."""

from pathlib import Path

if not (Path(__file__).parent / "models").is_dir():  # a checkout: the packages are beside this folder, not in it
    __path__.append(str(Path(__file__).parent.parent))
