import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gan_inversion
from gan_inversion.model_registry import catalogue, load_model
from gan_inversion.nodes.headless import cli, demo
from gan_inversion.nodes.headless.workflow_files import read_workflow

from .tiny_models import FILES, with_tiny_models, write_tiny_models

WORKFLOWS = Path(gan_inversion.__file__).resolve().parent / "workflows" / "api"
TINY = FILES["portraits"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder, and a model folder with tiny models."""
    torch.set_num_threads(1)
    monkeypatch.setenv("GAN_INVERSION_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_tiny_models(tmp_path / "home" / "models")
    workflow = {
        "1": {"class_type": "GANInversionLoadStyleGAN", "inputs": {"model": TINY}},
        "2": {
            "class_type": "GANInversionSample",
            "inputs": {"generator": ["1", 0], "seed": 1, "count": 2},
            "_meta": {"title": "Dice"},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 1], "filename_prefix": "dice"}},
    }
    (tmp_path / "sample.json").write_text(json.dumps(workflow))
    return tmp_path


def test_run_writes_pictures_and_prints_their_paths(place, capsys):
    assert cli.main(["run", "sample.json", "--output", "out", "--set", "Dice.count=3"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(Path("out") / f"dice_0000{i}_.png") for i in (1, 2, 3)]
    assert "3 nodes in" in printed.err
    first = np.asarray(Image.open("out/dice_00001_.png"))
    assert cli.main(["run", "sample.json", "--output", "out", "--set", "2.seed=2", "--set", "2.count=1"]) == 0
    assert not np.array_equal(first, np.asarray(Image.open("out/dice_00004_.png")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no.json", "--output", "out"], "no.json: no such workflow file."),
        (
            ["run", "sample.json", "--output", "out", "--set", "Dice.psi=9"],
            "Node 2 \"Dice\" (GANInversionSample): input 'psi'",
        ),
        (["run", "sample.json", "--output", "out", "--set", "Dyce.psi=1"], "the workflow has no node 'Dyce'"),
        (
            ["run", "sample.json", "--output", "out", "--set", "1.model=gone.pt"],
            "'gone.pt' is no catalogue id and no file in",
        ),
        (["convert", "page.pt", "a.safetensors"], "page.pt"),
        (["demo", "--output", "out", "--image", "no.png"], "no.png: no such picture."),
        (["demo", "--output", "out", "--image", "page.pt"], "page.pt: not a readable picture."),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(place, capsys, arguments, message):
    (place / "page.pt").write_text("<!DOCTYPE html><html></html>")
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out and len(printed.err.splitlines()) == 1
    assert printed.err.startswith("gan-inversion: error: ") and message in printed.err
    with pytest.raises(gan_inversion.GANInversionError):
        cli.main([*arguments, "--debug"])


def test_every_problem_of_a_workflow_is_a_line(place, capsys):
    assert cli.main(["run", "sample.json", "--output", "out", "--set", "2.psi=9", "--set", "2.count=0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_interrupt_and_surprise(place, capsys, monkeypatch):
    def stop(options):
        raise KeyboardInterrupt

    def fail(options):
        raise OSError("disk full")

    monkeypatch.setattr(cli, "_models", stop)
    assert cli.main(["models"]) == 130
    monkeypatch.setattr(cli, "_models", fail)
    assert cli.main(["models"]) == 1
    assert "unexpected OSError: disk full (--debug shows where)" in capsys.readouterr().err


def test_models_lists_every_entry(place, capsys):
    assert cli.main(["models"]) == 0
    listed = capsys.readouterr().out
    assert all(entry.id in listed for entry in catalogue.load_catalogue()) and "LICENCE" in listed


def test_convert(place, capsys):
    source = place / "home" / "models" / TINY
    assert cli.main(["convert", str(source), "copy.safetensors"]) == 0
    assert capsys.readouterr().out.strip() == "copy.safetensors"
    state, again = (load_model(path).module.state_dict() for path in (source, place / "copy.safetensors"))
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert cli.main(["convert", str(source), "half.safetensors", "--dtype", "float16"]) == 0
    assert (place / "half.safetensors").stat().st_size < (place / "copy.safetensors").stat().st_size


def test_train_hands_its_options_on(place, capsys, monkeypatch):
    from gan_inversion.core.training import generator

    monkeypatch.setattr(generator, "main", lambda arguments, registry: f"{arguments} {registry.save_model.__name__}")
    assert cli.main(["train", "generator", "--seconds", "3"]) == 0
    assert capsys.readouterr().out.strip() == "['--seconds', '3'] save_model"
    with pytest.raises(SystemExit):
        cli.main(["train", "everything"])


@pytest.fixture
def tiny_demo(place, monkeypatch):
    workflow = with_tiny_models(read_workflow(WORKFLOWS / "edit_portrait.json"))
    (place / "edit.json").write_text(json.dumps(workflow))
    monkeypatch.setattr(demo, "_WORKFLOW", place / "edit.json")
    return place


def test_demo_writes_before_and_after(tiny_demo, capsys):
    assert cli.main(["demo", "--output", "out", "--strength", "-1.5"]) == 0
    printed = capsys.readouterr()
    names = ["edited.png", "before_after.png", "aligned.png", "strip.png"]
    assert printed.out.splitlines() == [str(Path("out") / name) for name in names]
    assert "strength -1.5" in printed.err
    sizes = {name: Image.open(tiny_demo / "out" / name).size for name in names}
    assert sizes == {
        "edited.png": (512, 512), "before_after.png": (1032, 512), "aligned.png": (32, 32), "strip.png": (112, 32),
    }  # fmt: skip


def test_demo_on_a_photograph_of_ones_own(tiny_demo, capsys):
    from skimage import data

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: stored lying on its side
    Image.fromarray(np.rot90(data.astronaut()[:400])).save("turned.jpg", exif=exif, quality=95)
    assert cli.main(["demo", "--output", "out", "--image", "turned.jpg"]) == 0
    assert Image.open("out/edited.png").size == (512, 400)
    Image.fromarray(np.full((200, 200, 3), 90, np.uint8)).save("grey.png")
    capsys.readouterr()
    assert cli.main(["demo", "--output", "out", "--image", "grey.png"]) == 2
    assert "grey.png: Image 1 of 1: no face found" in capsys.readouterr().err


def test_the_installed_command_starts_quickly_without_torch(tmp_path):
    code = (
        "import sys; from gan_inversion.nodes.headless import cli\n"
        "try: cli.main(['--version'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    environment = {**os.environ, "GAN_INVERSION_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    version, loaded = run.stdout.splitlines()
    assert version.startswith("gan-inversion ") and loaded == "False"


def test_steps_inside_a_node_reach_a_terminal(monkeypatch, capsys):
    from gan_inversion.nodes.headless import cli, stand_in

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with cli._progress() as on_node:
        on_node("Project (W / W+)", 0, 1)
        bar = stand_in.ProgressBar(4)
        for step in range(1, 5):
            bar.update_absolute(step)
    shown = capsys.readouterr().err
    assert "Project (W / W+)" in shown and "4/4" in shown
    assert stand_in.ProgressBar.listener is None
