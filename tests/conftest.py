"""One thread for torch, for speed: tiny networks gain nothing from more, and threads wait for each other where other
programs run. No test is known to need it."""

import torch

torch.set_num_threads(1)
