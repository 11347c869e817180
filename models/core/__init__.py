"""Gaussians, noise, files, layers and errors; imports nothing else of the project."""
