import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gan_inversion
from gan_inversion.core.errors import InvalidInputError
from gan_inversion.nodes import MODULES, all_nodes
from gan_inversion.nodes.headless import schemas

SNAPSHOT = Path(__file__).with_name("schema_snapshot.json")
NODES = all_nodes()
FROM_FOLDERS = {"model", "direction", "file", "discriminator"}  # lists that depend on the machine
OPTIONS = ("options", "default", "min", "max", "step", "control_after_generate", "optional")
HEAVY = ("cv2", "skimage", "huggingface_hub", "lpips", "scipy", "torchvision")


def snapshot() -> dict:
    described = {}
    for node_id, cls in NODES.items():
        schema = cls.define_schema()
        described[node_id] = {
            "display_name": schema.display_name,
            "category": schema.category,
            "is_output_node": schema.is_output_node,
            "inputs": [_input(one, cls) for one in schema.inputs],
            "outputs": [[one.display_name, schemas.type_of(one)] for one in schema.outputs],
        }
    return described


def _checked(cls) -> set[str]:
    """Inputs that a node checks itself, as their options depend on files."""
    return set(inspect.signature(getattr(cls, "validate_inputs", lambda: None)).parameters)


def _input(one, cls) -> dict:
    facts = {"id": one.id, "type": schemas.type_of(one)}
    facts.update({name: getattr(one, name) for name in OPTIONS if getattr(one, name, None) not in (None, False)})
    if "options" in facts:
        facts["options"] = "files" if one.id in FROM_FOLDERS | _checked(cls) else list(facts["options"])
    return facts


def test_schemas_are_those_that_saved_workflows_rely_on():
    """Widgets are saved by position: see the rules for compatibility before accepting a difference."""
    found = snapshot()
    if os.environ.get("UPDATE_SCHEMA_SNAPSHOT"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(SNAPSHOT.read_text()), "UPDATE_SCHEMA_SNAPSHOT=1 writes the new one"


def test_every_node_of_the_design_is_there():
    names = {
        "Load StyleGAN", "Load Encoder", "Align Face", "Encode (e4e / ReStyle)", "Project (W / W+)", "Load Direction",
        "Discover Directions", "Apply Direction", "Render", "Blend", "Paste Back", "Direction Sweep", "Sample",
        "Compare / Measure",
        "Mix Styles", "Save Inversion", "Load Inversion", "DHR Refine", "Tune Generator (PTI / near-perfect)",
        "SAMM Align", "Predict Invertibility", "Multilayer Invert (SAM)", "ReGANIE Rectify",
    }  # fmt: skip
    assert {cls.define_schema().display_name for cls in NODES.values()} == names
    assert len(NODES) == len(MODULES) == len(names)
    folder = Path(gan_inversion.__file__).parent / "nodes"
    assert {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")} == set(MODULES)


@pytest.mark.parametrize("node_id", NODES)
def test_node_is_described_in_full(node_id):
    schema = NODES[node_id].define_schema()
    assert schema.node_id == node_id and schema.category.startswith("GAN Inversion/")
    assert len(schema.description) > 60 and schema.search_aliases
    for socket in [*schema.inputs, *schema.outputs]:
        assert socket.tooltip and socket.tooltip.endswith("."), (node_id, socket.id or socket.display_name)
    assert all(output.display_name and output.id is None for output in schema.outputs)
    for socket in filter(schemas.is_widget, schema.inputs):
        kind = schemas.type_of(socket)
        assert kind not in ("INT", "FLOAT") or None not in (socket.default, socket.min, socket.max), socket.id
        if kind == "COMBO" and socket.default is not None:
            assert socket.default in socket.options


@pytest.mark.parametrize("node_id", NODES)
def test_execute_takes_the_inputs_in_order_with_the_widgets_defaults(node_id):
    schema = NODES[node_id].define_schema()
    parameters = inspect.signature(NODES[node_id].execute).parameters
    assert list(parameters) == [one.id for one in schema.inputs]
    for one in schema.inputs:
        default = parameters[one.id].default
        if one.optional:
            assert default == getattr(one, "default", None), one.id
        else:
            assert default is inspect.Parameter.empty, one.id


def fixed_choices() -> list[tuple[str, str]]:
    """(node id, input) of every combo whose options do not depend on files; a node checks those itself otherwise."""
    return [
        (node_id, one.id)
        for node_id, cls in NODES.items()
        for one in cls.define_schema().inputs
        if schemas.type_of(one) == "COMBO" and one.id not in _checked(cls)
    ]


@pytest.mark.parametrize(("node_id", "name"), fixed_choices())
def test_an_unknown_choice_is_refused_before_anything_runs(node_id, name):
    # ComfyUI 0.3.64 hands on whatever a workflow says.
    required = {one.id: None for one in NODES[node_id].define_schema().inputs if not one.optional}
    with pytest.raises(InvalidInputError, match=rf"Input '{name}' is 'nonsense': expected one of .+, .+"):
        NODES[node_id].execute(**{**required, name: "nonsense"})


@pytest.mark.parametrize("node_id", NODES)
def test_checks_and_fingerprints_take_names_of_inputs(node_id):
    inputs = {one.id for one in NODES[node_id].define_schema().inputs}
    taken = {
        name: set(inspect.signature(getattr(NODES[node_id], name)).parameters)
        for name in ("validate_inputs", "fingerprint_inputs") if hasattr(NODES[node_id], name)
    }  # fmt: skip
    assert taken.get("validate_inputs", inputs) <= inputs
    # ComfyUI calls it with every input, those that come from other nodes as None.
    assert taken.get("fingerprint_inputs", inputs) == inputs


def _python(code: str, *paths: Path) -> dict:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_import_is_fast_and_brings_no_optional_dependency():
    found = _python(
        "import json, sys, time, torch, numpy, PIL.Image, safetensors.torch, torch.nn.functional\n"
        "start = time.process_time()\n"
        "import gan_inversion\n"
        "bare = [m for m in sys.modules if m.startswith('gan_inversion.')]\n"
        "from gan_inversion.nodes import all_nodes\n"
        "schemas = [cls.define_schema() for cls in all_nodes().values()]\n"
        "seconds = time.process_time() - start\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "print(json.dumps({'seconds': seconds, 'heavy': heavy, 'bare': bare, 'nodes': len(schemas)}))"
    )
    assert found["nodes"] == len(NODES)
    assert found["heavy"] == [] and found["bare"] == []
    assert found["seconds"] < 1.0


def test_public_names_are_there_and_nothing_registers_the_old_way():
    for name in gan_inversion.__all__:
        assert getattr(gan_inversion, name).__module__.split(".")[0] == "gan_inversion", name
    assert set(gan_inversion.__all__) == set(gan_inversion._MODULE_OF) <= set(dir(gan_inversion))
    for name in ("NODE_CLASS_MAPPINGS", "no_such_name"):
        assert not hasattr(gan_inversion, name)


def test_pack_loads_under_any_folder_name(tmp_path):
    """As ComfyUI does it: by path, under a name of its own, without the folder on sys.path."""
    pack = tmp_path / "GAN-inversion.main 2"
    pack.symlink_to(Path(gan_inversion.__file__).resolve().parent)
    found = _python(
        "import asyncio, importlib.util, json, sys\n"
        f"path = {str(pack)!r}\n"
        "name = path.replace('.', '_x_')\n"
        "spec = importlib.util.spec_from_file_location(name, path + '/__init__.py')\n"
        "module = sys.modules[name] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "async def nodes():\n"
        "    return await (await module.comfy_entrypoint()).get_node_list()\n"
        "ids = [cls.define_schema().node_id for cls in asyncio.run(nodes())]\n"
        "own = [m for m in sys.modules if m == 'nodes' or m.split('.')[0] == 'gan_inversion']\n"
        "print(json.dumps({'ids': ids, 'own': own}))"
    )
    assert found["ids"] == list(NODES) and found["own"] == []


def test_only_the_adapter_imports_comfyui():
    folder = Path(gan_inversion.__file__).parent
    pattern = re.compile(
        r"(?:import|from)\s+(?:comfy|comfy_api|folder_paths)\b|import_module\(\"(?:comfy|folder_paths)"
    )
    places = [
        folder / "__init__.py",
        *(p for part in ("core", "nodes", "model_registry") for p in (folder / part).rglob("*.py")),
    ]
    assert [p.name for p in places if pattern.search(p.read_text())] == ["_comfy.py"]
