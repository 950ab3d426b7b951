"""The GPU library: StyleGAN2, encoders, inversion and editing in plain PyTorch. Knows neither ComfyUI nor the registry."""
