"""The networks of the GAN stage and their objective."""
