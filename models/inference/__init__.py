"""What a checkpoint is and how images are drawn from one; no Lightning."""
