"""What ComfyUI's own model management does with the pack's networks, printed as JSON.

Run by ComfyUI's Python in its work tree: patchers.py PACK_FOLDER GENERATOR ENCODER JUDGE [--novram]
No GPU is needed: memory is a number here, and moves of modules are noted, not made.
"""

import functools
import gc
import importlib.util
import json
import sys

pack, generator_file, encoder_file, judge_file, *options = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, ".")
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402, F401
import torch  # noqa: E402

GPU = torch.device("cuda", 0)
VRAM = 8 * 2**30
where: dict[int, str] = {}  # module -> device, as the last move says
real_to = torch.nn.Module.to


def noted(self, *args, **kwargs):
    """Notes the device of a module and all below it."""
    target = next((a for a in (*args, *kwargs.values()) if isinstance(a, (str, torch.device))), None)
    if target is not None:
        where.update({id(module): torch.device(target).type for module in self.modules()})
    return self


def free_memory(device=None, torch_free_too=False):
    """What is left of the memory when all that is noted lies there."""
    used = sum(p.nbytes for m in watched for sub in m.modules() if where.get(id(sub)) == "cuda"
               for p in sub.parameters(recurse=False))  # fmt: skip
    left = VRAM - used if torch.device(device or GPU).type == "cuda" else 64 * 2**30
    return (left, 0) if torch_free_too else left


watched: list[torch.nn.Module] = []
torch.nn.Module.to = noted
torch.cuda.synchronize = lambda *_: None
management.get_torch_device = lambda: GPU
management.get_all_torch_devices = lambda *_, **__: [GPU]
management.unet_offload_device = lambda: torch.device("cpu")
management.get_free_memory = free_memory
management.soft_empty_cache = lambda *_: None
management.vram_state = management.VRAMState.NO_VRAM if "--novram" in options else management.VRAMState.NORMAL_VRAM

spec = importlib.util.spec_from_file_location("pack", f"{pack}/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
from pack.core.fingerprint import fingerprint  # noqa: E402
from pack.model_registry import load_model  # noqa: E402
from pack.nodes import _comfy  # noqa: E402


def places(network) -> list[str]:
    """Where the parts of a network lie."""
    parts = (sub for sub in network.modules() if any(True for _ in sub.parameters(recurse=False)))
    return sorted({where.get(id(sub), "cpu") for sub in parts})


def listed() -> int:
    """Models that ComfyUI takes for loaded."""
    return len(management.current_loaded_models)


class Other(torch.nn.Module):
    """Another pack's large model."""

    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(size // 4, device="meta"), requires_grad=False)


found = {"running": _comfy.RUNNING}
with torch.inference_mode():
    loaded = {
        name: load_model(file).module for name, file in (("generator", generator_file), ("encoder", encoder_file))
    }
    watched += loaded.values()
    networks = {name: _comfy.Network.of(module) for name, module in loaded.items()}
    generator, encoder = networks.values()
    found["sizes"] = [
        [n.patcher.model_size(), sum(t.nbytes for t in n.module.state_dict().values())] for n in networks.values()
    ]
    found["kind"] = type(generator.patcher).__name__
    found["device"] = _comfy.load_models([generator, encoder]).type
    found["loaded"] = [places(n.module) for n in networks.values()]
    _comfy.load_models([generator])
    _comfy.load_models([encoder, generator, generator])
    found["listed"] = listed()
    # Some of the memory is asked for: a part of the networks may go, and comes back whole.
    small = generator.patcher.model_size() // 50
    management.free_memory(free_memory(GPU) + small, GPU)
    found["partly"] = [places(n.module) for n in networks.values()]
    fingerprint(generator.module)  # as Save Inversion does, which loads nothing
    _comfy.load_models([generator, encoder])
    found["whole again"] = [places(n.module) for n in networks.values()]
    # Another model needs everything.
    other = comfy.model_patcher.ModelPatcher(Other(VRAM - 2**30), GPU, torch.device("cpu"))
    watched.append(other.model)
    management.load_models_gpu([other])
    found["pushed out"] = [places(n.module) for n in networks.values()]
    _comfy.load_models([generator, encoder], memory=2**30)
    found["back"] = [*(places(n.module) for n in networks.values()), places(other.model)]
    found["loaded size"] = [n.patcher.loaded_size() for n in networks.values()]
    # Memory runs out: all but our networks goes.
    neighbour = comfy.model_patcher.ModelPatcher(Other(2**29), GPU, torch.device("cpu"))
    watched.append(neighbour.model)
    management.load_models_gpu([neighbour])
    _comfy.load_models([generator])
    tries = []

    def work(here, there):
        tries.append(places(there))
        if len(tries) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return places(here)

    found["tries"] = [_comfy.with_room(functools.partial(work, generator.module, neighbour.model), [generator]), tries]
    # Networks of a single run.
    count = listed()
    for error in (None, ValueError("no"), management.InterruptProcessingException()):
        judge = load_model(judge_file).module
        watched.append(judge)
        try:
            with _comfy.on_device([generator], [judge]) as (_, together):
                during = places(judge), len(together), listed() - count
                if error is not None:
                    raise error
        except BaseException as caught:
            assert caught is error, caught
        del together
        found.setdefault("lent", []).append([*during, places(judge), listed() - count])
    # What nothing refers to any more does not stay in ComfyUI's list.
    gc.disable()
    watched.clear()
    del networks, generator, encoder, loaded, other, neighbour, judge
    found["left"] = listed()
print("FOUND " + json.dumps(found))
