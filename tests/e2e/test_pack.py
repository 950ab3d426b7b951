"""What ComfyUI knows of the pack: nodes, templates, model folders."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from gan_inversion.nodes import all_nodes
from gan_inversion.nodes.headless.runner import Runner

from ..nodes.tiny_models import FILES, every_node, reload_inversion
from .conftest import ELSEWHERE, ODD_NAME, ROOT
from .workflows import sampled

BAD_SIGNS = re.compile(
    r"IMPORT FAILED|Cannot import|Error while calling comfy_entrypoint|Skip .* module for custom nodes"
)


def test_every_node_is_there(server):
    assert not BAD_SIGNS.search(server.log()), server.log()[-3000:]
    info = server.json("/object_info")
    missing = set(all_nodes()) - set(info)
    assert not missing
    for node_id in all_nodes():
        assert info[node_id]["description"] and info[node_id]["display_name"], node_id
        assert json.loads(server.call(f"/object_info/{node_id}")), node_id


def test_every_node_runs(server):
    workflow = every_node()
    shown = server.run(workflow)["outputs"]
    assert server.picture(shown["save"]["images"][0]).shape == (512, 512, 3)
    (report,) = shown["compare"]["text"]
    (picture,) = shown["compare"]["images"]
    assert "PSNR" in report and "inside mask" in report and server.picture(picture).shape[1] > 2 * 128
    (file,) = shown["name"]["text"]
    assert (server.base / "output" / file).is_file()
    assert file in server.options("GANInversionLoadInversion", "file")
    again = server.run(reload_inversion(file))["outputs"]["save"]["images"]
    assert server.picture(again[0]).shape == (32, 32, 3)


def test_templates_are_listed_and_served_with_their_thumbnails(server):
    names = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert sorted(server.json("/workflow_templates")[ODD_NAME]) == names
    for name in names:
        place = f"/api/workflow_templates/{ODD_NAME}/{name}"
        assert server.json(f"{place}.json")["nodes"]
        assert server.call(f"{place}.jpg")[:2] == b"\xff\xd8"


def test_models_of_the_users_own_folders_load(server):
    assert {FILES["portraits"], ELSEWHERE} <= set(server.options("GANInversionLoadStyleGAN", "model"))
    assert {FILES["portraits"], ELSEWHERE} <= set(server.json("/models/stylegan"))
    ours, theirs = (server.run(sampled(model=model)) for model in (FILES["portraits"], ELSEWHERE))
    assert (server.pictures(ours, "save")[0] != server.pictures(theirs, "save")[0]).any()


def test_what_another_pack_registered_stays_as_it_was(server):
    folder = server.base / "models" / "checkpoints"
    folder.mkdir(exist_ok=True)
    for name in ("network.safetensors", "direction.npy"):
        (folder / name).touch()
    assert server.json("/models/checkpoints") == ["network.safetensors"]


def test_a_model_added_or_replaced_while_the_server_runs(server):
    folder, name = server.base / "models" / "stylegan", "added.safetensors"
    shutil.copy(folder / FILES["portraits"], folder / name)
    assert name in server.options("GANInversionLoadStyleGAN", "model")
    before = server.pictures(server.run(sampled(model=name)), "save")[0]
    shutil.copy(server.base / "their models" / "gan" / ELSEWHERE, folder / name)
    after = server.pictures(server.run(sampled(model=name)), "save")[0]
    assert (before != after).any()
    (folder / name).unlink()


def test_same_pixels_as_without_comfyui(server, tmp_path, monkeypatch):
    shown = server.pictures(server.run(sampled(count=2)), "save")
    (tmp_path / "models").mkdir()
    shutil.copy(server.base / "models" / "stylegan" / FILES["portraits"], tmp_path / "models")
    monkeypatch.setenv("GAN_INVERSION_HOME", str(tmp_path))
    own = Runner(input_dir=tmp_path, output_dir=tmp_path / "out").run(sampled(count=2))
    assert len(shown) == len(own.images) == 2
    for pixels, path in zip(shown, own.images, strict=True):
        assert abs(pixels.astype(int) - np.asarray(Image.open(path)).astype(int)).max() <= 1


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_cpu_draws_the_same_whatever_dtype_is_chosen(server, dtype):
    plain, chosen = (server.pictures(server.run(sampled(dtype=kind)), "save")[0] for kind in ("auto", dtype))
    assert (plain == chosen).all()
