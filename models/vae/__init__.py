"""The VAE: encoder, decoder, flows, and the priors over its latents."""
