"""The command `evaluate` with tiny models in place of the bundled ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion.core import evaluation
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.samm import Samm, SammConfig
from gan_inversion.model_registry import load_model, perceptual, save_model
from gan_inversion.nodes.headless import cli, evaluate

from .tiny_models import FILES, RESOLUTION, write_tiny_models


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder with a folder of photographs, and options that name the tiny models."""
    torch.set_num_threads(1)
    monkeypatch.setenv("GAN_INVERSION_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_tiny_models(tmp_path / "models")
    write_samm(tmp_path / "models")
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for name in ("b.png", "a.png", "c.png"):
        small = Image.fromarray(random.integers(0, 255, (4, 4, 3), np.uint8))
        small.resize((48, 40)).save(tmp_path / "photos" / name)
    return tmp_path


def write_samm(folder):
    """A SAMM network for the tiny networks, and one for a generator of other widths."""
    encoder = load_model(folder / FILES["portraits-e4e"]).module
    for name, width in (("samm", 8), ("wide", 12)):
        torch.manual_seed(1)
        generator = Generator(GeneratorConfig(RESOLUTION, (width,) * 4, z_dim=16, w_dim=16, mapping_layers=2))
        save_model(Samm(SammConfig.for_networks(generator, encoder)), folder / f"{name}.safetensors")


GENERATOR = ["--generator", str(Path("models") / FILES["portraits"])]
E4E = ["--encoder", f"e4e={Path('models') / FILES['portraits-e4e']}"]
IMAGES = ["--images", "photos", "--no-align"]
SAMM = ["--methods", "samm", *IMAGES, *GENERATOR, *E4E]


def run(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def test_rows_settings_table_and_sheet(place, capsys):
    (place / "photos" / "broken.jpg").write_bytes(b"not a picture")
    code = run("--methods", "e4e,w,w-plus", *IMAGES, *GENERATOR, *E4E, "--steps", 2, "--json", "out/r.json",
               "--sheet", "s.png", "--device", "cpu")  # fmt: skip
    assert code == 0
    data = json.loads((place / "out" / "r.json").read_text())
    assert [row["method"] for row in data["rows"]] == ["e4e", "w", "w-plus"] and data["skipped"] == []
    for row in data["rows"]:
        assert row["images"] == 3 and row["per_image"]["names"] == ["a.png", "b.png", "c.png"]
        assert row["psnr"] == pytest.approx(np.mean(row["per_image"]["psnr"]), abs=1e-4)
        assert {"mse", "ssim", "ms_ssim", "frechet", "seconds"} <= row.keys()
        assert not {"mask_iou", "aoa", "peak_memory_mb", "edit"} & row.keys()
    assert [entry["name"] for entry in data["left_out"]] == ["broken.jpg"]
    settings = data["settings"]
    assert settings["image_size"] == RESOLUTION and settings["images"] == 3 and settings["left_out"] == 1
    generator = load_model(place / "models" / FILES["portraits"])
    assert settings["generator"]["identity"] == generator.identity
    assert settings["models"]["e4e"]["name"] == FILES["portraits-e4e"]
    assert settings["methods"]["w"]["steps"] == 2 and settings["device"].startswith("cpu")
    assert "not an Inception FID" in settings["frechet"] and "10 * log10(4 / MSE)" in settings["psnr"]
    assert str(place) not in json.dumps(data)
    printed = capsys.readouterr().out
    table = printed.splitlines()
    assert table[0].split()[:3] == ["method", "images", "PSNR"] and table[3].startswith("w-plus")
    assert "1 photograph(s) left out" in printed and "broken.jpg" in printed
    assert printed.endswith(f"{Path('out') / 'r.json'}\ns.png\n")
    with Image.open("s.png") as sheet:
        assert sheet.height > 4 * 128 and sheet.width > 3 * 128  # four rows of three pictures


def test_the_numbers_are_those_of_the_encoder_itself(place):
    assert run("--methods", "e4e", *IMAGES, *GENERATOR, *E4E, "--limit", 2, "--batch", 1, "--json", "r.json") == 0
    row = json.loads((place / "r.json").read_text())["rows"][0]
    generator, encoder = (load_model(place / "models" / FILES[name]).module for name in ("portraits", "portraits-e4e"))
    from gan_inversion.core.alignment import CropTransform, align
    from gan_inversion.core.imaging import from_uint8, load_image, to_uint8

    crops = [
        align(load_image(place / "photos" / name), CropTransform.whole_square((40, 48), RESOLUTION))
        for name in ("a.png", "b.png")
    ]
    images = from_uint8(to_uint8(torch.cat(crops)))
    error = (generator.synthesis(encoder(images)).clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
    assert row["per_image"]["mse"] == pytest.approx(error.tolist(), abs=1e-5)
    assert row["psnr"] == pytest.approx(float((10 * torch.log10(4 / error)).mean()), abs=1e-3)


def test_an_edit(place, capsys):
    smile = Path("models") / FILES["portraits-smile"]
    assert run("--methods", "e4e", *IMAGES, *GENERATOR, *E4E, "--edit", f"{smile}:1.5", "--json", "r.json") == 0
    data = json.loads((place / "r.json").read_text())
    found = data["rows"][0]["edit"]
    assert found["name"] == "tiny-smile" and found["strength"] == 1.5
    assert 0 <= found["wider_in"] <= 1 and len(found["per_image"]["mouth_wider_percent"]) == 3
    assert "not an independent judge" in data["settings"]["landmarks"]
    assert "tiny-smile, strength 1.5" in capsys.readouterr().out
    assert evaluate._edit_name("smile:0.5") == ("smile", 0.5) and evaluate._edit_name("smile") == ("smile", 1.0)
    assert evaluate._edit_name("C:/a/smile.pt") == ("C:/a/smile.pt", 1.0)


def test_attributes(place, capsys):
    smile = Path("models") / FILES["portraits-smile"]
    code = run("--methods", "e4e", *IMAGES, *GENERATOR, *E4E, "--attributes", smile, "--alphas", "-1.5,0,2",
               "--json", "r.json")  # fmt: skip
    assert code == 0
    data = json.loads((place / "r.json").read_text())
    rows = data["rows"][0]["attributes"]
    assert [(row["direction"], row["alpha"]) for row in rows] == [("tiny-smile", alpha) for alpha in (-1.5, 0, 2)]
    assert all(row["images"] == 3 and row["attribute"] == "smile_width" for row in rows)
    assert rows[1]["changes"]["brightness"] == 0 != rows[2]["changes"]["brightness"]
    told = data["settings"]["attributes"]
    assert told["alphas"] == [-1.5, 0, 2] and told["directions"]["tiny-smile"]["measured"] == "smile_width"
    assert told["directions"]["tiny-smile"]["direction"] == FILES["portraits-smile"]
    assert "closed mouths" in told["limits"]
    assert told["units"]["yaw"] == {"value": "degrees", "change": "degrees"}
    printed = capsys.readouterr().out
    assert "attribute response" in printed and "closed mouths" in printed
    (line,) = (line for line in printed.splitlines() if " +2 " in line)
    assert line.split()[:4] == ["e4e", "tiny-smile", "+2", "smile"]


@pytest.mark.parametrize(
    ("name", "found"), [("smile", "portraits-smile"), ("pose", "portraits-yaw"), ("portraits-age", "portraits-age")]
)
def test_attributes_by_name_are_the_bundled_directions(name, found):
    loaded = load_model("portraits")
    source, direction = evaluate._direction_named(name, loaded)
    assert source == found and direction.delta(loaded.module.broadcast(loaded.module.w_avg[None]), 1.0).any()


def test_predicted_masks_are_compared_with_exact_ones(place, monkeypatch):
    from gan_inversion.core.inversion import Inversion

    def invert(images, context):
        mask = torch.ones(len(images), 1, 8, 8)
        code = context.generator.broadcast(context.generator.w_avg[None]).expand(len(images), -1, -1)
        return evaluation.Result(Inversion(images, code, context.generator), mask)

    monkeypatch.setitem(evaluation.METHODS, "guess", evaluation.Method("guess", (), invert))
    assert run("--methods", "guess", *IMAGES, *GENERATOR, "--occluders", 5, "--json", "r.json") == 0
    data = json.loads((place / "r.json").read_text())
    row, occluders = data["rows"][0], data["settings"]["occluders"]
    assert row["aoa"] == 1 and 0 < row["mask_iou"] < 1
    assert row["mask_iou"] == pytest.approx(occluders["covered"], abs=0.05)
    assert {"psnr_in_domain", "psnr_out_of_domain"} <= row.keys()
    assert occluders["first_seed"] == 5 and set(occluders["kinds"]) == {"a.png", "b.png", "c.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "e4e,e5e", *IMAGES, *GENERATOR], "No method 'e5e': expected some of e4e, psp"),
        (["--methods", "e4e", *IMAGES, *GENERATOR], "Method e4e cannot run: Nothing is known of models for tiny-gen"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--encoder", "psp=x.pt"], "--model psp=...: none of the methods uses"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--model", "psp"], "expected NAME=ID_OR_FILE"),
        ([*SAMM], "Method samm cannot run: Nothing is known of models for tiny"),
        ([*SAMM, "--model", "samm=models/tiny-e4e.safetensors"], "expected samm"),
        ([*SAMM, "--model", "samm=models/wide.safetensors"], "wide.safetensors for samm does not fit tiny-gen"),
        (["--methods", "e4e", *IMAGES, *GENERATOR, "--encoder", "e4e=portraits-e4e"], "gives codes [12, 256]"),
        (["--methods", "w", *GENERATOR], "give photographs by --portraits DIR or --images DIR"),
        (["--methods", "w", "--images", "nowhere", *GENERATOR], "nowhere: no such folder"),
        (["--methods", "w", "--images", "photos", *GENERATOR], "none of which could be used. Use --no-align"),
        (["--methods", "w", "--portraits", "photos", *GENERATOR], "expected a portraits folder"),
        (["--methods", "w", "--samples", "3", *GENERATOR], "give either --methods"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--limit", "0"], "--limit 0: expected 1 or more"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--lpips", "vgg"], "No perceptual distance 'vgg'"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--edit", "smirk"], "smirk"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--attributes", "smirk"], "smirk"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--attributes", ", "], "name a direction"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--attributes", "portraits-smile"], "made for another generator"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--attributes", "smile", "--alphas", "-1,x"], "expected finite"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--attributes", "smile", "--alphas", "inf"], "expected finite"),
        (["--samples", "3", *GENERATOR, "--attributes", "smile"], "not with --images, --edit, --attributes"),
        (["--methods", "w", *IMAGES, *GENERATOR, "--json", "photos"], "photos is a folder"),
    ],
)
def test_refusals_come_before_anything_runs(place, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(evaluation, "evaluate_method", lambda *_, **__: pytest.fail("it ran"))
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


def test_all_skips_what_has_no_model(place, capsys):
    assert run("--methods", "all", *IMAGES, *GENERATOR, *E4E, "--steps", 1, "--limit", 1, "--json", "r.json") == 0
    data = json.loads((place / "r.json").read_text())
    skipped = {entry["method"] for entry in data["skipped"]}
    assert {"psp", "restyle-e4e", "restyle-psp"} <= skipped
    assert {"e4e", "w", "w-plus"} <= {row["method"] for row in data["rows"]}
    assert "skipped psp: " in capsys.readouterr().out


def test_encoders_of_the_catalogue(place):
    from types import SimpleNamespace

    def default(name, model_id):
        return evaluate._default_model(name, SimpleNamespace(catalogue_id=model_id, path=Path("g.pt")))

    assert default("e4e", "portraits") == ("portraits-e4e", "")
    assert default("e4e", "stylegan2-ffhq-1024") == (
        None, "e4e-ffhq is not on this machine: --model e4e=e4e-ffhq fetches it.",
    )  # fmt: skip
    assert "The catalogue has no 'psp' for the generator stylegan2-metfaces-1024" in default(
        "psp", "stylegan2-metfaces-1024"
    )[1]  # fmt: skip
    assert "Nothing is known" in default("e4e", None)[1]


def test_models_given_by_name(place, monkeypatch):
    monkeypatch.setattr(evaluate, "_perceptual", lambda name: (None, None))
    monkeypatch.setattr(perceptual, "available_distance", lambda *_, **__: pytest.fail("no method compares features"))
    samm = ["--model", f"samm={Path('models') / 'samm.safetensors'}"]
    assert run("--methods", "samm,samm-1,samm-blend-only", *IMAGES, *GENERATOR, *E4E, *samm, "--json", "r.json") == 0
    data = json.loads((place / "r.json").read_text())
    assert [row["method"] for row in data["rows"]] == ["samm", "samm-1", "samm-blend-only"]
    assert data["settings"]["models"]["samm"]["architecture"] == "samm"
    described = data["settings"]["methods"]
    assert [described[name]["iterations"] for name in described] == [2, 1, 2]
    assert described["samm-blend-only"]["warp"] is False and described["samm"]["features"] == "e4e"
    assert all(0 < row["aoa"] < 1 for row in data["rows"])
    assert len({row["psnr"] for row in data["rows"]}) == 3


def test_models_of_the_catalogue_are_found_by_architecture_and_domain(monkeypatch):
    from types import SimpleNamespace

    from gan_inversion.model_registry import catalogue

    known = catalogue.find("portraits-e4e")
    names = {"samm": "samm", "sam-invertibility": "invertibility", "sam-encoder": "multilayer-encoder"}
    more = [
        dataclasses.replace(known, id=f"ours-{name}-{domain}", kind=kind, architecture=name, domain=domain)
        for domain in ("elsewhere", "portraits")
        for name, kind in names.items()
    ]
    entries = (*(entry for entry in catalogue.load_catalogue() if entry.architecture not in names), *more)
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: entries)
    monkeypatch.setattr(evaluate, "_is_here", lambda name: name.startswith("ours-"))
    loaded = SimpleNamespace(catalogue_id="portraits", path=Path("g.pt"))
    assert {name: evaluate._default_model(name, loaded) for name in names} == {
        name: (f"ours-{name}-portraits", "") for name in names
    }


def test_samples(place, capsys):
    assert run("--samples", 3, *GENERATOR, "--json", "r.json", "--sheet", "s.png") == 0
    data = json.loads((place / "r.json").read_text())
    assert data["samples"]["count"] == 3 and data["rows"] == []
    assert "3 random faces" in capsys.readouterr().out
    with Image.open("s.png") as sheet:
        assert sheet.height > 2 * 128


def test_samples_beside_training_photographs(place, capsys, monkeypatch):
    from gan_inversion.core.training import portraits

    people = torch.rand(4, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(portraits, "load_people", lambda *_, **__: (["1", "2", "3", "4"], people))
    monkeypatch.setattr(evaluate, "_fresh_morphs", lambda options, size, count: people.repeat(2, 1, 1, 1)[:count])
    assert run("--samples", 3, *GENERATOR, "--portraits", "anywhere", "--json", "r.json", "--sheet", "s.png") == 0
    found = json.loads((place / "r.json").read_text())["samples"]
    kinds = {"truncation 1", "truncation 0.7", "fresh morphs"}
    assert set(found["frechet"]) == kinds == set(found["nearest_distance"])
    assert found["nearest_distance"]["fresh morphs"]["min"] == pytest.approx(0, abs=1e-5)  # they are photographs here
    assert found["nearest_distance"]["truncation 1"]["min"] > 0.01
    assert "fresh morphs" in capsys.readouterr().out
    with Image.open("s.png") as sheet:
        assert sheet.height > 4 * 128
