"""Runs the official face parser beside ours on random weights, on the CPU, and compares logits.

    OFFICIAL_FACE_PARSING_DIR=... python -m tests.parity.face_parser_parity [--fixtures DIR]

The variable names a checkout of zllrunning/face-parsing.PyTorch. The official code runs in its own process, because its
modules are called `model` and `resnet`; it writes its state dict as a .pth file, and ours must load that file. Weights
are made from names and shapes alone. `--fixtures DIR` writes the committed numbers instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

from .encoder_parity import seeded_image, seeded_state

TOLERANCE = 1e-4
VARIABLE = "OFFICIAL_FACE_PARSING_DIR"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Height and width of the picture. "demo" resizes an 8-bit picture with PIL, as the official test.py does; the others
# give both sides the same picture and let the network work at its size.
CASES: dict[str, dict] = {
    "512": {"size": (512, 512), "batch": 2},
    "640x480": {"size": (640, 480)},
    "odd sides 333x258": {"size": (333, 258)},
    "tiny 37x21": {"size": (37, 21)},
}
DEMO = (900, 700)
FIXTURE = {"size": (72, 56)}
FIXTURE_STEP = 4  # every fourth pixel of the logits is committed


def case_image(case: dict) -> torch.Tensor:
    """The picture of a case, [batch, 3, *size] in [-1, 1]."""
    return seeded_image(case.get("batch", 1), tuple(case["size"]))


def demo_picture() -> np.ndarray:
    """The 8-bit picture of the demo, [H, W, 3]."""
    image = seeded_image(1, DEMO)[0].permute(1, 2, 0)
    return ((image + 1) * 127.5).round().to(torch.uint8).numpy()


def official(cases: dict[str, dict], folder: Path) -> None:
    """Child process: writes the official weights, and main, stride 16 and stride 32 logits of every case."""
    sys.path.insert(0, os.environ[VARIABLE])
    sys.modules["torchvision"] = MagicMock(name="torchvision")  # imported there and not used
    import torch.utils.model_zoo

    torch.utils.model_zoo.load_url = lambda *_, **__: {}  # no download
    from model import BiSeNet

    net = BiSeNet(n_classes=19).eval().requires_grad_(False)
    net.load_state_dict(seeded_state({name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}))
    torch.save(net.state_dict(), folder / "79999_iter.pth")
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for name, case in cases.items():
        started = time.perf_counter()
        outputs = net(((case_image(case) + 1) / 2 - mean) / std)
        arrays = {f"output_{index}": output.numpy() for index, output in enumerate(outputs)}
        np.savez(folder / f"{name}.npz", seconds=time.perf_counter() - started, **arrays)
    from PIL import Image

    picture = Image.fromarray(demo_picture()).resize((512, 512), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    np.savez(folder / "demo.npz", output_0=net(((pixels - mean) / std)[None])[0].numpy())


def run_official(cases: dict[str, dict], folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The official side of every case and of the demo; its weight file stays in the folder."""
    command = [
        sys.executable,
        "-m",
        "tests.parity.face_parser_parity",
        "--official",
        json.dumps(cases),
        "--output",
        folder,
    ]
    subprocess.run([str(part) for part in command], check=True, cwd=Path(__file__).parents[2])
    results = {}
    for name in (*cases, "demo"):
        with np.load(folder / f"{name}.npz") as arrays:
            results[name] = dict(arrays)
    return results


def compare() -> float:
    """Runs both sides, prints one row per case, and returns the largest difference of the main logits."""
    from gan_inversion.core.imaging import from_uint8
    from gan_inversion.model_registry import convert, load_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = run_official(CASES, folder)
        loaded = load_model(folder / "79999_iter.pth")
        again = load_model(convert(folder / "79999_iter.pth", folder / "converted.safetensors"))
        differences = []
        for case_name, case in CASES.items():
            image = case_image(case)
            started = time.perf_counter()
            main = loaded.module(image, size=tuple(case["size"]))
            seconds = time.perf_counter() - started
            heads = loaded.module.all_logits(image, size=tuple(case["size"]))
            assert torch.equal(main, heads[0]) and torch.equal(main, again.module(image, size=tuple(case["size"])))
            found = [float(np.abs(o.numpy() - theirs[case_name][f"output_{i}"]).max()) for i, o in enumerate(heads)]
            differences.append(max(found))
            print(
                f"{case_name:20} {list(main.shape)!s:20} std {float(main.std()):5.2f}  max |difference| "
                f"{found[0]:.1e} (auxiliary heads {found[1]:.1e}, {found[2]:.1e})  "
                f"official {float(theirs[case_name]['seconds']):.1f} s, ours {seconds:.1f} s"
            )
        image = from_uint8(demo_picture()[None])
        small = torch.nn.functional.interpolate(image, size=(512, 512), mode="bilinear", antialias=True)
        ours, official_logits = loaded.module(small), torch.from_numpy(theirs["demo"]["output_0"])
        agreed = (ours.argmax(dim=1) == official_logits.argmax(dim=1)).float().mean()
        print(
            f"demo {DEMO[0]}x{DEMO[1]} -> 512: max |difference| {float((ours - official_logits).abs().max()):.1e}, "
            f"classes equal on {float(agreed):.2%} of the pixels (PIL rounds the resized picture to 8 bits)"
        )
    return max(differences)


def write_fixtures(folder: Path) -> None:
    """Official logits of FIXTURE, thinned out."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        logits = run_official({"fixture": FIXTURE}, Path(name))["fixture"]["output_0"]
    np.savez_compressed(folder / "bisenet.npz", logits=logits[:, :, ::FIXTURE_STEP, ::FIXTURE_STEP])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fixtures", type=Path, help="write the committed numbers to this folder and stop")
    parser.add_argument("--official", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if VARIABLE not in os.environ:
        parser.error(f"set {VARIABLE} to a checkout of the official repository")
    if arguments.official:
        official(arguments.official, arguments.output)
        return 0
    if arguments.fixtures:
        write_fixtures(arguments.fixtures)
        return 0
    difference = compare()
    print(f"largest difference {difference:.1e}, allowed {TOLERANCE:.0e}")
    return int(difference > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
