"""One thread for torch: tiny networks gain nothing from more, and the backward pass of a slim encoder in channels_last has
crashed inside torch 2.13's CPU kernels with two."""

import torch

torch.set_num_threads(1)
