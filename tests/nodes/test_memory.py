"""What nodes do when memory runs out, and what they leave behind: nothing, also after an error or an interrupt.

There is no GPU here: networks raise torch's own exception, and moves of modules are counted.
"""

import functools
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import gan_inversion
from gan_inversion.core.deeplab import DeepLabConfig
from gan_inversion.core.dhr import Calibration, DhrConfig
from gan_inversion.core.discriminator import Discriminator, DiscriminatorConfig
from gan_inversion.core.encoders import StyleEncoder
from gan_inversion.core.fingerprint import fingerprint
from gan_inversion.core.generator import SynthesisNetwork
from gan_inversion.core.invertibility import InvertibilityConfig, InvertibilityNet, latent_spaces
from gan_inversion.core.perceptual import PerceptualTrunk
from gan_inversion.core.tuning import NearPerfectConfig
from gan_inversion.model_registry import save_model
from gan_inversion.nodes import _comfy, dhr_refine, predict_invertibility, tune_generator
from gan_inversion.nodes._comfy import Network
from gan_inversion.nodes.headless import stand_in

OUT_OF_MEMORY = functools.partial(torch.cuda.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB")
MPS = functools.partial(RuntimeError, "MPS backend out of memory (MPS allocated: 18 GB)")
ROOT = Path(gan_inversion.__file__).resolve().parent
OPTIONAL = {"lpips", "skimage", "cv2", "accelerate", "torchvision", "torchmetrics", "scipy", "huggingface_hub", "onnx"}
IMPORT_SECONDS = 1.0  # of the processor, so that a busy machine does not count; 0.2 to 0.5 measured


@pytest.fixture(autouse=True)
def quick(monkeypatch, models):
    fixed = Calibration(1.0, 0.3, 2.0, 1.3)
    monkeypatch.setattr(dhr_refine, "DhrConfig", functools.partial(DhrConfig, coarse_steps=2, calibration=fixed))
    monkeypatch.setattr(tune_generator, "NearPerfectConfig", functools.partial(NearPerfectConfig, stand_ins=4))
    monkeypatch.setattr(predict_invertibility, "_memory", type(predict_invertibility._memory)())
    torch.manual_seed(2)
    if not (models / "judge-of-memory.safetensors").exists():
        save_model(Discriminator(DiscriminatorConfig(32, (8,) * 4)), models / "judge-of-memory.safetensors")
        base = DeepLabConfig(stem=4, widths=(4, 4, 4), units=(1, 1, 1), pyramid=4, low_level=4, decoder=4, outputs=4)
        predictor = InvertibilityNet(InvertibilityConfig(latent_spaces(32), base))
        save_model(predictor, models / "predictor-of-memory.safetensors", {"generator": "none of these"})


@pytest.fixture
def sampled(run, generator):
    return run("Sample", generator=generator, seed=3, count=2)[0]


@pytest.fixture
def works(run, generator, encoder, aligned, sampled):
    """Name -> a call of a node that goes through a network."""
    judged = {"method": "near-perfect", "discriminator": "judge-of-memory.safetensors"}
    smile = run("DiscoverDirections", generator=generator)[0]
    mapped = run("PredictInvertibility", inversion=sampled, method="predictor-of-memory.safetensors")[0]
    predict_invertibility._memory.clear()
    calls = {
        "encode": ("Encode", {"image": aligned, "encoder": encoder, "generator": generator}),
        "project": ("Project", {"image": aligned, "generator": generator, "steps": 3}),
        "sample": ("Sample", {"generator": generator, "seed": 5}),
        "render": ("Render", {"inversion": sampled}),
        "sweep": ("DirectionSweep", {"inversion": sampled, "direction": smile, "steps": 2, "cell": 64}),
        "samm": ("SAMMAlign", {"inversion": sampled, "steps": 3}),
        "predict": ("PredictInvertibility", {"inversion": sampled, "method": "predictor-of-memory.safetensors"}),
        "measure": ("PredictInvertibility", {"inversion": sampled, "method": "measure (no network)", "steps": 3}),
        "regions": ("MultilayerInvert", {"inversion": sampled, "latent_map": mapped, "steps": 3}),
        "dhr": ("DHRRefine", {"inversion": sampled, "steps": 3}),
        "pti": ("TuneGenerator", {"inversion": sampled, "steps": 3, "stop_at": 0.0}),
        "near-perfect": ("TuneGenerator", {"inversion": sampled, "steps": 3, **judged}),
        "reganie": ("ReGANIERectify", {"inversion": sampled, "method": "residual transfer (baseline)"}),
    }
    return {name: functools.partial(run, kind, **inputs) for name, (kind, inputs) in calls.items()}


WORKS = (
    "encode", "project", "sample", "render", "sweep", "samm", "predict", "measure", "regions", "dhr", "pti",
    "near-perfect", "reganie",
)  # fmt: skip
NETWORK = {"encode": StyleEncoder, "predict": InvertibilityNet}  # else the generator's


def failing(monkeypatch, network: type, fails, error=None) -> list[int]:
    """Has a network raise where fails(batch sizes so far) says so; gives the list of these sizes."""
    sizes: list[int] = []
    forward = network.forward

    def call(self, x, *args, **kwargs):
        sizes.append(len(x))
        if fails(sizes):
            raise OUT_OF_MEMORY() if error is None else error()
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(network, "forward", call)
    return sizes


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MPS])
def test_encode_halves_its_batch(run, generator, encoder, monkeypatch, error):
    images = torch.rand(5, 32, 32, 3)
    whole = run("Encode", image=images, encoder=encoder, generator=generator)[0].inversion.w_plus
    sizes = failing(monkeypatch, StyleEncoder, lambda sizes: sizes[-1] > 1, error)
    halved = run("Encode", image=images, encoder=encoder, generator=generator)[0].inversion.w_plus
    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    torch.testing.assert_close(halved, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", WORKS)
def test_a_node_tries_once_more_when_memory_runs_out(works, name, monkeypatch):
    network, node = NETWORK.get(name, SynthesisNetwork), works[name]
    with monkeypatch.context() as patch:
        sizes = failing(patch, network, lambda sizes: len(sizes) == 1)
        node()
        assert len(sizes) > 1 and set(sizes[1:]) <= {1, 2}
    predict_invertibility._memory.clear()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sizes = failing(monkeypatch, network, lambda sizes: True)
        node()
    assert len(sizes) <= 3  # two images, one image, one image again


def test_other_errors_are_not_tried_again(works, monkeypatch):
    for name in ("encode", "render", "pti"):
        network = NETWORK.get(name, SynthesisNetwork)
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="shapes"):
            sizes = failing(patch, network, lambda sizes: True, lambda: RuntimeError("shapes cannot fit"))
            works[name]()
        assert len(sizes) == 1


def test_what_counts_as_out_of_memory(monkeypatch):
    assert _comfy.out_of_memory(OUT_OF_MEMORY()) and _comfy.out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not _comfy.out_of_memory(ValueError("out of memory")) and not _comfy.out_of_memory(RuntimeError("no"))

    class AcceleratorError(Exception):
        pass

    monkeypatch.setattr(
        _comfy, "_host", type("Host", (), {"is_oom": lambda error: isinstance(error, AcceleratorError)})
    )
    assert _comfy.out_of_memory(AcceleratorError()) and not _comfy.out_of_memory(ValueError())


def test_the_failed_attempt_is_gone_before_the_next_one():
    alive: list[bool] = []
    parts: list[weakref.ref] = []

    def work():
        alive.extend(ref() is not None for ref in parts)
        part = torch.ones(3)
        parts.append(weakref.ref(part))
        if len(parts) == 1:
            raise OUT_OF_MEMORY()
        return part

    gc.disable()
    try:
        assert _comfy.with_room(work, []).sum() == 3
    finally:
        gc.enable()
    assert alive == [False]


def tensors_alive() -> int:
    """Without collecting garbage: what only the collector would free holds memory of the device until it runs."""
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


def interrupting(monkeypatch, after: int) -> None:
    """Has the user stop at the n-th report of progress."""
    reports = iter(range(10**6))

    class Bar(stand_in.ProgressBar):
        def update_absolute(self, value, total=None, preview=None):
            if next(reports) == after:
                stand_in.interrupt_current_processing()
            super().update_absolute(value, total, preview)

    monkeypatch.setattr(_comfy, "ProgressBar", Bar)


class Refused(Exception):
    """Raised by a network."""


ENDS = {"success": None, "interrupt": stand_in.InterruptProcessingException, "error": Refused,
        "out of memory": torch.cuda.OutOfMemoryError}  # fmt: skip


@pytest.mark.parametrize("name", WORKS)
def test_nothing_is_left_without_the_garbage_collector(works, name, monkeypatch):
    node, network = works[name], NETWORK.get(name, SynthesisNetwork)
    monkeypatch.setattr(predict_invertibility, "_REMEMBERED", 0)
    node()  # what is loaded once is there now
    predict_invertibility._memory.clear()
    gc.collect()
    gc.disable()
    try:
        before = tensors_alive()
        for end, expected in ENDS.items():
            raised: type | None = None
            with monkeypatch.context() as patch:
                if end == "interrupt":
                    interrupting(patch, 1)
                elif end == "error":
                    failing(patch, network, lambda sizes: True, Refused)
                elif end == "out of memory":
                    failing(patch, network, lambda sizes: len(sizes) > 1)
                try:
                    node()
                except (Refused, torch.cuda.OutOfMemoryError, stand_in.InterruptProcessingException) as error:
                    raised = type(error)
            stand_in.interrupt_current_processing(False)
            if end != "out of memory":  # a node of one pass does not come to the second one
                assert raised is expected, end
            assert tensors_alive() == before, end
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["samm", "predict", "measure", "regions", "dhr", "pti", "near-perfect"])
def test_networks_of_one_run_are_released(works, name, monkeypatch):
    moved: list[tuple[str, nn.Module]] = []
    to, release = nn.Module.to, Network.release

    def noted(self, *args, **kwargs):
        moved.append(("to", self))
        return to(self, *args, **kwargs)

    def released(self):
        release(self)
        moved.append(("released", self.module))

    monkeypatch.setattr(nn.Module, "to", noted)
    monkeypatch.setattr(Network, "release", released)
    for end in (None, Refused):
        moved.clear()
        predict_invertibility._memory.clear()
        with monkeypatch.context() as patch:
            if end is not None:
                failing(patch, NETWORK.get(name, SynthesisNetwork), lambda sizes: len(sizes) == 1, end)
            try:
                works[name]()
            except Refused:
                assert end is not None
        gone = {id(module) for kind, module in moved if kind == "released"}
        assert gone
        for module in {id(module): module for kind, module in moved if kind == "to"}.values():
            last = [kind for kind, other in moved if other is module][-1]
            assert last == "released" or not isinstance(module, PerceptualTrunk | InvertibilityNet), type(module)


def test_tuning_keeps_no_second_generator(run, works, sampled):
    def generators() -> int:
        return sum(type(o) is SynthesisNetwork for o in gc.get_objects())

    before = generators()
    wires = [works[name]()[0] for name in ("pti", "near-perfect", "dhr")]
    assert generators() == before
    for wire in wires:
        assert wire.inversion.generator is sampled.inversion.generator is wire.generator.generator
        assert wire.generator.network is sampled.generator.network


def test_gradients_stay_switched_off(works, generator):
    for name in ("project", "pti", "near-perfect", "dhr", "samm"):
        works[name]()
        assert not any(p.requires_grad or p.grad is not None for p in generator.generator.parameters())


def test_helpers_leave_the_device_whatever_happens(monkeypatch):
    moves: list[tuple[str, str]] = []

    class Net(nn.Linear):
        def to(self, device):
            moves.append((self.name, str(device)))
            return self

    wired, helper = Net(2, 2), Net(2, 2)
    wired.name, helper.name = "wired", "helper"
    monkeypatch.setattr(stand_in, "get_torch_device", lambda: torch.device("meta"))
    for error in (None, ValueError(), stand_in.InterruptProcessingException()):
        moves.clear()
        try:
            with _comfy.on_device([Network.of(wired)], [helper]) as (device, loaded):
                assert device.type == "meta" and [n.module for n in loaded] == [wired, helper]
                if error is not None:
                    raise error
        except BaseException as caught:
            assert caught is error
        assert moves == [("wired", "meta"), ("helper", "meta"), ("helper", "cpu")]


def test_a_network_that_is_off_the_device_in_part_keeps_its_identity(monkeypatch):
    brought: list[torch.Tensor] = []
    to, cat = torch.Tensor.to, torch.cat

    def noted(self, *args, **kwargs):
        brought.append(to(self, *args, **kwargs))
        return brought[-1] if "cpu" in args else to(self, *args, **kwargs).clone()

    def joined(tensors, *args, **kwargs):
        assert all(any(tensor is one for one in brought) for tensor in tensors), "joined before all are on one device"
        return cat(tensors, *args, **kwargs)

    network = nn.Linear(3, 2)
    whole = fingerprint(network)
    monkeypatch.setattr(torch.Tensor, "to", noted)
    monkeypatch.setattr(torch, "cat", joined)
    assert fingerprint(network) == whole


SCRIPT = """
import importlib.util, sys, time
import numpy, torch, PIL.Image
begin, known = time.process_time(), set(sys.modules)
spec = importlib.util.spec_from_file_location({name!r}, {root!r} + "/__init__.py", submodule_search_locations=[{root!r}])
module = sys.modules[{name!r}] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import asyncio
nodes = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
for node in nodes:
    node.define_schema()
print(len(nodes), time.process_time() - begin, *sorted({{n.split(".")[0] for n in set(sys.modules) - known}}))
"""


def test_importing_the_pack_is_quick_and_brings_nothing_optional(nodes, tmp_path):
    script = SCRIPT.format(name="custom_nodes/GAN inversion_x_main (2)", root=str(ROOT))
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    count, seconds, *imported = ran.stdout.split()
    assert int(count) == len(nodes) and not OPTIONAL & set(imported), imported
    assert float(seconds) < IMPORT_SECONDS
