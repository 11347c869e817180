"""Distributions, noise, files, layers and errors: what everything else stands on."""
