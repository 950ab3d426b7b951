"""GAN Inversion."""
