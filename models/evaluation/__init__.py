"""What held-out and drawn images say of a model."""
