"""Seconds and peak memory of one synthesis pass on random weights.

    python benchmarks/generator.py [--resolution 1024] [--device cpu] [--batch 1] [--threads N]

Reference and fast convolution are timed beside each other in float32, then the fast one in float16 and bfloat16 on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import torch

from gan_inversion.core import generator as generator_module
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.ops import modulated_conv2d_reference


def main() -> None:
    """Prints one row per variant."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig.official(options.resolution)).eval().requires_grad_(False).to(options.device)
    w_plus = torch.randn(options.batch, generator.num_ws, generator.config.w_dim, device=options.device)
    row("fast, float32", generator, w_plus, torch.float32, options.repeats)
    with mock.patch.object(generator_module, "modulated_conv2d", modulated_conv2d_reference):
        row("reference, float32", generator, w_plus, torch.float32, options.repeats)
    if w_plus.is_cuda:
        row("fast, float16", generator, w_plus, torch.float16, options.repeats)
        row("fast, bfloat16", generator, w_plus, torch.bfloat16, options.repeats)


@torch.no_grad()
def row(name: str, generator: Generator, w_plus: torch.Tensor, dtype: torch.dtype, repeats: int) -> None:
    """Times `repeats` passes after one to warm up."""
    seconds = []
    if w_plus.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats + 1):
        start = time.perf_counter()
        generator.synthesis(w_plus, dtype=dtype)
        if w_plus.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU" if w_plus.is_cuda else ""
    print(f"{name:20} {statistics.median(seconds[1:]):.3f} s  {memory}")


if __name__ == "__main__":
    main()
