"""Checkpoints, the pipelines that draw images from them, and pictures; no Lightning."""
