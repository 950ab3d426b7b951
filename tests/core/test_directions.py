"""Direction files of every format, and directions made from a generator or from codes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gan_inversion.core import directions, discovery
from gan_inversion.core.directions import list_directions, load_direction, named_pca_directions, save_direction
from gan_inversion.core.editing import Coordinate, Direction, Edit
from gan_inversion.core.errors import (
    CorruptFileError,
    GANInversionError,
    GeneratorMismatchError,
    InvalidInputError,
    ModelNotFoundError,
    UnsafeFileError,
)
from gan_inversion.core.fingerprint import fingerprint
from gan_inversion.core.generator import Generator, GeneratorConfig

CONFIG = GeneratorConfig(32, (16, 16, 16, 8), 32, 32, 2)
ROWS, WIDTH = CONFIG.num_ws, CONFIG.w_dim
SHARED = Path(os.environ.get("GAN_INVERSION_SHARED", Path(__file__).parents[2].parent / "shared")) / "data"
REAL = SHARED / "directions"


@pytest.fixture(scope="module")
def real() -> Path:
    if not REAL.is_dir():
        warnings.warn(f"Published direction files not found at {REAL}; set GAN_INVERSION_SHARED.", stacklevel=1)
        pytest.skip(f"no published direction files at {REAL}")
    return REAL


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(CONFIG).eval().requires_grad_(False)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=rng(seed)), dim=-1)


def cosine(a: Tensor, b: Tensor) -> float:
    """Signed: a direction that points the wrong way fails."""
    return float(nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


# Files written here


def test_a_w_normal_is_read_from_torch_and_numpy_alike(tmp_path):
    normal = unit_rows(1, 512)
    torch.save(normal, tmp_path / "a.pt")
    np.save(tmp_path / "b.npy", normal.numpy().astype(np.float64))
    np.save(tmp_path / "c.npy", normal[0].numpy().astype(">f4"))
    for file in ("a.pt", "b.npy", "c.npy"):
        direction = load_direction(tmp_path / file)
        assert direction.offset.dtype == torch.float32 and direction.unit == 1.0 and direction.limits == (-5.0, 5.0)
        torch.testing.assert_close(direction.offset, normal)
    assert load_direction(tmp_path / "a.pt").name == "a"


def test_the_content_decides_and_not_the_name(tmp_path):
    with (tmp_path / "smile.pt").open("wb") as file:
        np.save(file, unit_rows(1, 512).numpy())
    torch.save(unit_rows(1, 512), tmp_path / "smile.npy")
    assert load_direction(tmp_path / "smile.pt").offset.equal(load_direction(tmp_path / "smile.npy").offset)


def test_raw_w_plus_offsets_keep_their_scale_and_tell_their_rows(tmp_path):
    offset = torch.zeros(1, 18, 512)
    offset[:, 2:4] = torch.randn(1, 2, 512, generator=rng(1))
    np.save(tmp_path / "glasses.npy", offset.numpy())
    np.save(tmp_path / "samm.npy", torch.randn(18, 512, generator=rng(2)).numpy())
    direction = load_direction(tmp_path / "glasses.npy")
    assert direction.unit == 1.0 and direction.limits == (-3.0, 3.0) and direction.layers == (2, 4)
    torch.testing.assert_close(direction.delta(torch.zeros(1, 18, 512), 2.0), 2 * offset)
    assert load_direction(tmp_path / "samm.npy").offset.shape == (18, 512)


def test_a_flattened_normal_becomes_rows_as_strong_as_one_of_w(tmp_path):
    flat = unit_rows(1, 9216)
    np.save(tmp_path / "boundary.npy", flat.numpy())
    direction = load_direction(tmp_path / "boundary.npy")
    delta = direction.delta(torch.zeros(1, 18, 512), 1.0)
    assert cosine(delta, flat) > 0.9999
    torch.testing.assert_close(delta.square().sum(-1).mean(), torch.tensor(1.0), atol=1e-4, rtol=0)


def pca_file(path: Path, count: int = 60, width: int = 512) -> dict[str, Tensor]:
    content = {
        "comp": torch.linalg.qr(torch.randn(width, count, generator=rng(3))).Q.T.contiguous()[:, None],
        "mean": torch.randn(1, width, generator=rng(4)),
        "std": torch.linspace(3.0, 0.2, count),
    }
    torch.save(content, path)
    return content


def test_a_pca_steps_by_standard_deviations(tmp_path):
    content = pca_file(tmp_path / "pca.pt")
    assert [d.name for d in list_directions(tmp_path / "pca.pt")][:2] == ["pca:0", "pca:1"]
    direction = load_direction(tmp_path / "pca.pt", component=5, name="five", layers=(1, 3))
    assert direction.name == "five" and direction.layers == (1, 3)
    delta = direction.delta(torch.randn(1, 18, 512), 2.0)
    torch.testing.assert_close(delta[0, 1], 2 * content["std"][5] * content["comp"][5, 0])
    assert delta[:, 3:].eq(0).all()


def test_an_absolute_pca_sets_the_coordinate_of_row_0(tmp_path):
    content = pca_file(tmp_path / "pca.pt")
    comp, mean, std = content["comp"][7], content["mean"], content["std"][7]
    w_plus = torch.randn(2, 18, 512, generator=rng(5))
    delta = load_direction(tmp_path / "pca.pt", component=7, layers=(0, 4), absolute=True).delta(w_plus, -1.5)
    coordinate = ((w_plus[:, 0] - mean) * comp).sum(-1, keepdim=True) / std
    expected = ((-1.5 - coordinate) * comp * std)[:, None].expand(-1, 4, -1)
    torch.testing.assert_close(delta[:, :4], expected, atol=1e-5, rtol=1e-5)
    assert delta[:, 4:].eq(0).all()


@pytest.mark.parametrize("absolute", [False, True])
def test_named_edits_move_their_rows_by_the_published_signed_strength(tmp_path, absolute):
    content = pca_file(tmp_path / "pca.pt")
    named = {d.name: d for d in named_pca_directions(tmp_path / "pca.pt", "ffhq", absolute=absolute)}
    w_plus = content["mean"].expand(1, 18, 512)  # all coordinates are 0: a step and a place agree
    for name, component, layers, strength in (("smile", 46, (4, 5), -20.0), ("eye_openness", 54, (7, 8), 20.0)):
        delta = named[name].delta(w_plus, 1.0)
        expected = torch.zeros_like(delta)
        expected[:, layers[0] : layers[1]] = strength * content["std"][component] * content["comp"][component]
        torch.testing.assert_close(delta, expected, atol=1e-4, rtol=1e-4)
    cars = named_pca_directions(tmp_path / "pca.pt", "cars")
    assert {d.name for d in cars} == {"viewpoint", "cube", "color", "grass"}


def test_named_edits_need_a_known_domain_and_enough_components(tmp_path):
    pca_file(tmp_path / "pca.pt", count=10)
    torch.save(unit_rows(1, 512), tmp_path / "w.pt")
    for file, domain, message in (
        ("pca.pt", None, "ffhq, cars"),
        ("pca.pt", "church", "'church'"),
        ("pca.pt", "ffhq", "10 components"),
        ("w.pt", "ffhq", "not a PCA"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            named_pca_directions(tmp_path / file, domain)


def test_an_official_ganspace_npz_is_read_by_its_latent_components(tmp_path):
    comp, std = unit_rows(4, 1, 512), np.array([4.0, 3.0, 2.0, 1.0], np.float32)
    np.savez(
        tmp_path / "stylegan2.npz",
        act_comp=np.zeros((4, 1, 512), np.float32),
        act_mean=np.zeros((1, 512)),
        act_stdev=np.ones(4),
        lat_comp=comp.numpy(),
        lat_mean=np.zeros((1, 512), np.float32),
        lat_stdev=std,
        var_ratio=std / 10,
        random_stdevs=np.array([None, "x"], dtype=object),
    )
    found = list_directions(tmp_path / "stylegan2.npz")
    assert [d.unit for d in found] == [4.0, 3.0, 2.0, 1.0]
    torch.testing.assert_close(found[2].offset, comp[2])


def test_sefa_factors_are_columns(tmp_path):
    vectors = torch.linalg.qr(torch.randn(512, 512, generator=rng(6))).Q
    torch.save({"eigvec": vectors, "ckpt": "checkpoint.pt"}, tmp_path / "factor.pt")
    direction = load_direction(tmp_path / "factor.pt", component=3)
    torch.testing.assert_close(direction.offset[0], vectors[:, 3])
    assert len(list_directions(tmp_path / "factor.pt")) == 512


def test_tensors_saved_from_a_gpu_open_on_the_cpu(tmp_path):
    torch.save(unit_rows(1, 18, 512), tmp_path / "cpu.pt")
    with zipfile.ZipFile(tmp_path / "cpu.pt") as source, zipfile.ZipFile(tmp_path / "gpu.pt", "w") as target:
        for item in source.infolist():
            content = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            target.writestr(item.filename, content)
    direction = load_direction(tmp_path / "gpu.pt")
    assert direction.offset.device.type == "cpu" and direction.offset.equal(load_direction(tmp_path / "cpu.pt").offset)


def test_files_of_old_torch_versions_open(tmp_path):
    torch.save(unit_rows(1, 512), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(load_direction(tmp_path / "old.pt").offset, unit_rows(1, 512))


def test_saved_directions_come_back_complete(tmp_path):
    made = [
        Direction(
            "smile",
            torch.randn(1, WIDTH),
            unit=2.5,
            limits=(-1.0, 2.0),
            layers=(1, 4),
            generator_id="abc",
            description="from pairs",
        ),
        Direction("pose", torch.randn(ROWS, WIDTH)[::1], coordinate=None),
        Direction("absolute", torch.randn(1, WIDTH), coordinate=Coordinate(torch.randn(WIDTH), 1.5)),
        Direction("both", torch.randn(1, WIDTH), style={"b8.conv0": torch.randn(16), "b4.conv1": torch.randn(16)}),
    ]
    path = save_direction(tmp_path / "deep" / "mine.safetensors", made, licence="CC BY 4.0", note="portraits")
    assert directions.read_note(path) == {"licence": "CC BY 4.0", "note": "portraits"}
    assert list(path.parent.iterdir()) == [path]
    back = list_directions(path)
    w_plus = torch.randn(2, ROWS, WIDTH)
    for before, after in zip(made, back, strict=True):
        for name in ("name", "unit", "limits", "layers", "generator_id", "description"):
            assert getattr(after, name) == getattr(before, name)
        assert after.delta(w_plus, 0.7).equal(before.delta(w_plus, 0.7))
        assert set(after.style) == set(before.style)
        assert all(after.style[layer].equal(before.style[layer]) for layer in before.style)
    assert load_direction(path, component="pose").name == "pose"
    single = save_direction(tmp_path / "one.safetensors", made[0])
    assert load_direction(single).name == "smile"


def test_saving_needs_distinct_names(tmp_path):
    with pytest.raises(InvalidInputError, match="name of its own"):
        save_direction(tmp_path / "x.safetensors", [Direction("a", torch.ones(1, 4)), Direction("a", torch.ones(1, 4))])


def test_unit_limits_and_layers_can_be_given(tmp_path):
    torch.save(unit_rows(1, 512), tmp_path / "w.pt")
    direction = load_direction(tmp_path / "w.pt", name="n", unit=-2.0, limits=(0.0, 1.0), layers=(0, 6))
    assert (direction.name, direction.unit, direction.limits, direction.layers) == ("n", -2.0, (0.0, 1.0), (0, 6))


def test_one_of_many_must_be_chosen_by_a_valid_index_or_name(tmp_path):
    pca_file(tmp_path / "pca.pt", count=10)
    for component, message in ((None, "10 directions.*0 to 9"), (10, "0 to 9"), (-1, "0 to 9"), ("smile", "pca:0")):
        with pytest.raises(InvalidInputError, match=message):
            load_direction(tmp_path / "pca.pt", component=component)
    assert load_direction(tmp_path / "pca.pt", component="pca:4").name == "pca:4"


def test_a_folder_lists_what_it_can_and_names_what_it_cannot(tmp_path, caplog):
    torch.save(unit_rows(1, 512), tmp_path / "b.pt")
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "sub" / "c.npy", unit_rows(18, 512).numpy())
    (tmp_path / "readme.html").write_text("<!DOCTYPE html>")
    with caplog.at_level(logging.WARNING):
        assert [d.name for d in list_directions(tmp_path)] == ["b", "c"]
    assert "readme.html" in caplog.text


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def bad_files(marker: Path) -> dict[str, tuple[bytes, type[GANInversionError], str]]:
    def npy(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    def pt(content: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def npz(**arrays: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    good = pt(unit_rows(1, 512))
    comp = unit_rows(3, 1, 512)
    safetensors = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    return {
        "empty.pt": (b"", CorruptFileError, "empty"),
        "page.pt": (b"<!DOCTYPE html><html>Sign in</html>", CorruptFileError, "web page"),
        "pointer.npy": (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 9\n", CorruptFileError, "LFS"),
        "text.pt": (b"not a tensor at all", CorruptFileError, "no known format"),
        "cut.pt": (good[: len(good) // 2], CorruptFileError, "truncated"),
        "cut.npy": (npy(np.ones((1, 512), np.float32))[:-100], CorruptFileError, "truncated"),
        "object.npy": (npy(np.array([Payload(marker)], dtype=object)), UnsafeFileError, "pickled"),
        "code.pt": (pt({"comp": Payload(marker)}), UnsafeFileError, "Nothing was executed"),
        "code.pkl": (pickle.dumps(Payload(marker)), UnsafeFileError, "Nothing was executed"),
        "text.npy": (npy(np.array(["a", "b"])), InvalidInputError, "<U1"),
        "codes.npy": (npy(np.ones((68, 18, 512), np.float32)), InvalidInputError, "68 codes"),
        "matrix.npy": (npy(np.ones((512, 512), np.float32)), InvalidInputError, r"\[512, 512\]"),
        "images.pt": (pt(torch.zeros(1, 3, 64, 64)), InvalidInputError, r"\[1, 3, 64, 64\]"),
        "integers.pt": (pt(torch.ones(1, 512, dtype=torch.long)), InvalidInputError, "int64"),
        "zeros.pt": (pt(torch.zeros(1, 512)), InvalidInputError, "zeros"),
        "nan.pt": (pt(torch.full((1, 512), float("nan"))), CorruptFileError, "NaN"),
        "number.pt": (pt(0.5), InvalidInputError, "float"),
        "list.pt": (pt([torch.ones(512)]), InvalidInputError, "list of 1"),
        "weights.pt": (pt({"conv1.weight": torch.ones(3)}), InvalidInputError, "conv1.weight"),
        "half.pt": (pt({"comp": comp}), InvalidInputError, "incomplete PCA"),
        "odd.pt": (pt({"comp": comp, "mean": torch.ones(1, 512), "std": torch.ones(4)}), InvalidInputError, "PCA"),
        "eig.pt": (pt({"eigvec": torch.ones(512)}), InvalidInputError, "eigvec"),
        "s.npz": (npz(mean_00=np.ones(512), std_00=np.ones(512)), InvalidInputError, "style-space"),
        "object.npz": (npz(lat_comp=np.array([Payload(marker)], dtype=object)), InvalidInputError, "incomplete PCA"),
        "foreign.safetensors": (len(safetensors).to_bytes(8, "little") + safetensors, InvalidInputError, "not saved"),
        "cut.safetensors": ((9000).to_bytes(8, "little") + safetensors, CorruptFileError, "damaged safetensors"),
    }


@pytest.mark.parametrize("name", list(bad_files(Path("marker"))))
def test_a_bad_file_gives_one_clear_error_and_runs_nothing(tmp_path, name):
    marker = tmp_path / "executed"
    content, error, message = bad_files(marker)[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(GANInversionError, match=message) as caught:
        load_direction(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)
    assert not marker.exists()


def test_a_damaged_byte_never_escapes_as_a_foreign_error(tmp_path):
    path = save_direction(tmp_path / "own.safetensors", Direction("a", torch.randn(1, 64)))
    torch.save({"comp": unit_rows(2, 1, 64), "mean": torch.ones(1, 64), "std": torch.ones(2)}, tmp_path / "pca.pt")
    np.save(tmp_path / "w.npy", unit_rows(1, 64).numpy())
    np.savez(tmp_path / "g.npz", lat_comp=unit_rows(2, 1, 64).numpy(), lat_mean=np.ones(64), lat_stdev=np.ones(2))
    random = np.random.default_rng(0)
    for good in (path, tmp_path / "pca.pt", tmp_path / "w.npy", tmp_path / "g.npz"):
        content = good.read_bytes()
        for trial in range(60):
            damaged = bytearray(content)
            for position in random.integers(0, min(len(content), 600), 2):
                damaged[position] = random.integers(256)
            if trial % 5 == 0:
                damaged = damaged[: random.integers(1, len(damaged))]
            (tmp_path / "damaged").write_bytes(damaged)
            with contextlib.suppress(GANInversionError):
                list_directions(tmp_path / "damaged")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        load_direction(tmp_path / "no.pt")
    with pytest.raises(ModelNotFoundError, match="folder"):
        load_direction(tmp_path)


def test_absolute_strengths_need_a_pca(tmp_path):
    torch.save(unit_rows(1, 512), tmp_path / "w.pt")
    with pytest.raises(InvalidInputError, match="absolute"):
        load_direction(tmp_path / "w.pt", absolute=True)


# Published files


def test_every_published_file_is_read_or_refused_with_a_reason(real, caplog):
    with caplog.at_level(logging.WARNING):
        found = list_directions(real)
    refused = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Skipped")]
    assert len(refused) == 2 and "s_mean_std_ffhq.npz" in refused[0] and "68 codes" in refused[1]
    assert len(found) == 3 * 80 + 52
    for direction in found:
        rows, width = direction.offset.shape
        assert width == 512 and rows in (1, 14, 16, 18)
        assert direction.delta(torch.zeros(1, rows if rows > 1 else 18, 512), 1.0).abs().sum() > 0


def test_published_interfacegan_normals_have_measured_limits(real):
    pca = torch.load(real / "e4e" / "ffhq_pca.pt", weights_only=True, map_location="cpu")
    for name, largest in (("age", 4.5), ("smile", 2.5), ("pose", 5.0)):
        direction = load_direction(real / "e4e" / f"{name}.pt")
        assert direction.limits == (-largest, largest) and direction.unit == 1.0 and direction.description
        along = (pca["comp"][:, 0] @ direction.offset[0] * pca["std"]).norm()  # standard deviation of w along it
        assert largest == pytest.approx(min(5.0, 3 * float(along)), abs=0.2)
    rotation, pose = load_direction(real / "pti" / "rotation.pt"), load_direction(real / "e4e" / "pose.pt")
    torch.testing.assert_close(rotation.delta(torch.zeros(1, 18, 512), 1.0), pose.delta(torch.zeros(1, 18, 512), 1.0))


def test_published_pcas_know_their_named_edits(real):
    assert load_direction(real / "e4e" / "ffhq_pca.pt", component="smile").layers == (4, 5)
    assert load_direction(real / "e4e" / "cars_pca.pt", component="grass").layers == (9, 11)
    with pytest.raises(InvalidInputError, match="None"):
        named_pca_directions(real / "stylefeatureeditor" / "church_pca.pt")


def test_the_mislabelled_glasses_file_removes(real):
    faces = real / "sam_inversion" / "faces"
    add, remove = (load_direction(faces / f"csc_glasses_{kind}.npy") for kind in ("add", "remove"))
    w_plus = torch.zeros(1, 18, 512)
    assert remove.delta(w_plus, 1.0).equal(-add.delta(w_plus, 1.0))
    young, old = (load_direction(faces / f"csc_{kind}.npy").delta(w_plus, 1.0) for kind in ("young", "old"))
    torch.testing.assert_close(young, -old / 2)


def test_a_published_direction_moves_real_codes_along_itself_only(real):
    codes = torch.from_numpy(np.load(real / "styleclip" / "w_plus.npy")[:4])
    smile = load_direction(real / "e4e" / "smile.pt")
    moved = Edit.of(smile, 2.0).apply(codes)
    torch.testing.assert_close(((moved - codes) @ smile.offset[0]), torch.full((4, 18), 2.0), atol=1e-3, rtol=0)
    with pytest.raises(GeneratorMismatchError):
        load_direction(real / "sam_inversion" / "cars" / "csc_suv.npy").delta(codes, 1.0)


# Directions made here


class LinearMapping(nn.Module):
    """A mapping network with a known covariance: w = mean + z A."""

    def __init__(self, matrix: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("w_avg", mean)

    def forward(self, z: Tensor) -> Tensor:
        return self.w_avg + z @ self.matrix


def planted(generator: Generator, stds: Tensor) -> Tensor:
    """Gives the generator w with the given deviations along the returned orthonormal rows."""
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=rng(11))).Q.T
    generator.mapping = LinearMapping(stds[:, None] * basis, torch.randn(WIDTH, generator=rng(12)))
    return basis


def plant_affine(generator: Generator, rows: range, vector: Tensor, strength: float) -> None:
    synthesis = generator.synthesis
    for name, row in zip(synthesis.style_names, synthesis.style_rows, strict=True):
        if row in rows:
            weight = synthesis.get_submodule(name).affine.weight
            out = torch.randn(len(weight), 1, generator=rng(row))
            weight.copy_(0.1 * torch.randn(weight.shape, generator=rng(row + 50)) + strength * out * vector)


def test_sefa_finds_the_dominant_direction_of_the_affine_layers(generator):
    strong, weak = torch.linalg.qr(torch.randn(WIDTH, 2, generator=rng(13))).Q.T
    plant_affine(generator, range(0, 4), strong, 3.0)
    plant_affine(generator, range(4, ROWS), weak, 1.5)
    found = discovery.sefa(generator, 3)
    assert [d.name for d in found] == ["sefa:0", "sefa:1", "sefa:2"]
    assert abs(cosine(found[0].offset, strong)) > 0.98 and abs(cosine(found[1].offset, weak)) > 0.98
    assert found[0].generator_id == fingerprint(generator) and found[0].layers is None
    for direction in found:
        assert direction.offset.abs().argmax() == direction.offset.argmax(), "signs are fixed"
    again = discovery.sefa(generator, 3)
    assert all(a.offset.equal(b.offset) for a, b in zip(found, again, strict=True))


def test_sefa_equals_a_singular_value_decomposition_of_the_stacked_weights(generator):
    synthesis = generator.synthesis
    names = [name for name in synthesis.style_names if name == "b4.torgb" or not name.endswith("torgb")]
    stacked = torch.cat([synthesis.get_submodule(name).affine.weight for name in names])
    reference = torch.linalg.svd(stacked).Vh
    for direction, vector in zip(discovery.sefa(generator, WIDTH), reference, strict=True):
        assert abs(cosine(direction.offset, vector)) > 0.999


def test_sefa_for_a_range_analyses_and_edits_exactly_these_rows(generator):
    inside, outside = torch.linalg.qr(torch.randn(WIDTH, 2, generator=rng(14))).Q.T
    plant_affine(generator, range(ROWS), outside, 5.0)
    plant_affine(generator, range(2, 4), inside, 2.0)
    (direction,) = discovery.sefa(generator, 1, layers=(2, 4))
    assert abs(cosine(direction.offset, inside)) > 0.98
    w_plus = torch.zeros(1, ROWS, WIDTH)
    before, after = (generator.synthesis.styles(w) for w in (w_plus, Edit.of(direction, 1.0).apply(w_plus)))
    names, rows = generator.synthesis.style_names, generator.synthesis.style_rows
    changed = {name for name, a, b in zip(names, before, after, strict=True) if not torch.allclose(a, b, atol=1e-6)}
    assert changed == {name for name, row in zip(names, rows, strict=True) if row in (2, 3)}


def test_the_last_row_has_sefa_directions_of_its_rgb_layer(generator):
    (direction,) = discovery.sefa(generator, 1, layers=(ROWS - 1, ROWS))
    reference = torch.linalg.svd(generator.synthesis.b32.torgb.affine.weight).Vh[0]
    assert abs(cosine(direction.offset, reference)) > 0.999


def test_strength_one_of_sefa_is_a_standard_deviation_of_w(generator):
    basis = planted(generator, torch.linspace(3.0, 0.1, WIDTH))
    plant_affine(generator, range(ROWS), basis[4], 5.0)
    direction = discovery.sefa(generator, 1)[0]
    assert direction.unit == pytest.approx(torch.linspace(3.0, 0.1, WIDTH)[4].item(), rel=0.1)


def test_pca_recovers_a_known_covariance(generator):
    stds = 4.0 * 0.8 ** torch.arange(WIDTH)
    basis = planted(generator, stds)
    found = discovery.pca_of_w(generator, 4, samples=20_000, seed=1)
    for index, direction in enumerate(found):
        assert abs(cosine(direction.offset, basis[index])) > 0.99
        assert direction.unit == pytest.approx(float(stds[index]), rel=0.03)
        assert direction.limits == (-3.0, 3.0)
    assert found[0].offset.equal(discovery.pca_of_w(generator, 1, samples=20_000, seed=1)[0].offset)


def test_an_absolute_component_of_w_reaches_its_coordinate(generator):
    planted(generator, 4.0 * 0.8 ** torch.arange(WIDTH))
    (direction,) = discovery.pca_of_w(generator, 1, samples=5000, absolute=True)
    w_plus = generator.broadcast(discovery.sample_w(generator, 3, seed=5))
    moved = Edit.of(direction, 2.0).apply(w_plus)
    coordinate = (moved - direction.coordinate.mean) @ direction.offset[0] / direction.offset.norm()
    torch.testing.assert_close(coordinate / direction.coordinate.std, torch.full((3, ROWS), 2.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rows", [1, ROWS])
def test_pairs_recover_the_planted_step_with_its_sign_and_length(rows):
    planted_step = torch.randn(rows, WIDTH, generator=rng(15))
    a = torch.randn(40, rows, WIDTH, generator=rng(16)) * 3
    b = a + planted_step + 0.3 * torch.randn(a.shape, generator=rng(17))
    if rows == 1:
        a, b = a[:, 0], b[:, 0]
    direction = discovery.direction_from_pairs(a, b, "smile")
    assert cosine(direction.offset, planted_step) > 0.99
    assert direction.unit == pytest.approx(float(planted_step.norm()), rel=0.05)
    assert float(direction.offset.norm()) == pytest.approx(1.0, abs=1e-5)
    back = discovery.direction_from_pairs(b, a, "frown")
    torch.testing.assert_close(back.offset, -direction.offset)


def test_the_robust_mean_ignores_wrong_pairs():
    step = torch.randn(1, WIDTH, generator=rng(18))
    a = torch.randn(30, WIDTH, generator=rng(19))
    b = a + step + 0.1 * torch.randn(30, WIDTH, generator=rng(20))
    b[:5] = a[:5] - 40 * unit_rows(5, WIDTH, seed=21) - 10 * step
    robust, plain = (discovery.direction_from_pairs(a, b, "x", robust=flag) for flag in (True, False))
    assert cosine(robust.offset, step) > 0.98 > cosine(plain.offset, step)


def test_a_shared_row_is_the_mean_of_the_rows():
    a = torch.zeros(4, ROWS, WIDTH)
    steps = torch.randn(ROWS, WIDTH, generator=rng(22))
    direction = discovery.direction_from_pairs(a, a + steps, "x", shared=True)
    torch.testing.assert_close(direction.delta(a, 1.0), steps.mean(dim=0).expand(4, ROWS, -1))


def two_sets(count: int, separation: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Codes that differ along `normal`, and vary strongly along another axis that is correlated with the difference."""
    normal, nuisance = torch.linalg.qr(torch.randn(WIDTH, 2, generator=rng(23))).Q.T
    noise = 0.5 * torch.randn(2, count, WIDTH, generator=rng(24))
    noise = noise + 4 * torch.randn(2, count, 1, generator=rng(25)) * nuisance
    return noise[0], noise[1] + separation * normal + 2 * nuisance, normal


def test_sets_recover_the_planted_normal_and_leave_out_what_varies_anyway():
    negative, positive, normal = two_sets(300)
    boundary = discovery.direction_from_sets(negative, positive, "x")
    means = discovery.direction_from_sets(negative, positive, "x", method="means")
    assert cosine(boundary.offset, normal) > 0.95 > cosine(means.offset, normal)
    assert boundary.unit == pytest.approx(3.0, rel=0.1)
    swapped = discovery.direction_from_sets(positive, negative, "x")
    assert cosine(swapped.offset, boundary.offset) < -0.999


def test_sets_work_with_fewer_codes_than_dimensions():
    normal = unit_rows(1, ROWS * WIDTH, seed=26)
    codes = torch.randn(2, 24, ROWS, WIDTH, generator=rng(27)) * 0.3
    codes[1] += 4 * normal.view(ROWS, WIDTH)
    direction = discovery.direction_from_sets(codes[0], codes[1], "x")
    assert direction.offset.shape == (ROWS, WIDTH) and cosine(direction.offset, normal) > 0.9


def test_the_shrunk_covariance_is_solved_as_its_full_matrix():
    x = torch.randn(20, 7, generator=rng(28)).double() * torch.linspace(0.2, 3, 7)
    x = x - x.mean(dim=0)
    target = torch.randn(7, generator=rng(29)).double()
    solved = discovery._solve_shrunk_covariance(x, target)
    covariance = x.T @ x / 20
    mu = covariance.trace() / 7
    noise = sum((torch.outer(row, row) - covariance).square().sum() for row in x) / 20**2
    share = min(1.0, float(noise / (covariance - mu * torch.eye(7)).square().sum()))
    full = (1 - share) * covariance + share * mu * torch.eye(7)
    torch.testing.assert_close(solved, torch.linalg.solve(full, target))


def test_groups_that_do_not_differ_or_fit_are_refused():
    a = torch.randn(4, WIDTH)
    for call in (
        lambda: discovery.direction_from_pairs(a, a, "x"),
        lambda: discovery.direction_from_pairs(a, a[:3], "x"),
        lambda: discovery.direction_from_sets(a[:1], a, "x"),
        lambda: discovery.direction_from_sets(a, torch.randn(4, ROWS, WIDTH), "x"),
        lambda: discovery.direction_from_sets(a, a + 1, "x", method="svm"),
        lambda: discovery.direction_from_pairs(a, a + float("nan"), "x"),
    ):
        with pytest.raises(InvalidInputError):
            call()


class MeanEncoder:
    """Image -> its mean colour in the first entries of every row; counts what it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, image: Tensor, generator: Generator) -> Tensor:
        self.seen += len(image)
        codes = torch.zeros(len(image), generator.num_ws, generator.config.w_dim)
        codes[..., :3] = image.mean(dim=(2, 3))[:, None]
        return codes


@pytest.mark.parametrize("paired", [True, False])
def test_pictures_are_encoded_once_and_give_the_direction_between_them(generator, paired):
    a = torch.rand(6, 3, 32, 32, generator=rng(30)) * 0.2
    b = a.clone()
    b[:, 1] += 0.5
    if not paired:
        b = b.flip(0)[:5]
    encoder, progress = MeanEncoder(), []
    direction = discovery.direction_from_images(
        encoder,
        generator,
        a,
        b,
        "green",
        paired=paired,
        method="means",
        on_progress=lambda *state: progress.append(state),
    )
    expected = torch.zeros(ROWS, WIDTH)
    expected[:, 1] = 1
    assert cosine(direction.offset, expected) > 0.99
    assert encoder.seen == len(a) + len(b) == progress[-1][0] == progress[-1][1]
    assert direction.generator_id == fingerprint(generator)
    with pytest.raises(InvalidInputError, match="paired=False"):
        discovery.direction_from_images(encoder, generator, a, b[:4], "x")


def test_a_style_channel_moves_alone_by_its_standard_deviation(generator):
    direction = discovery.style_direction(generator, "b16.conv1", 3, samples=500)
    assert direction.name == "b16.conv1:3" and direction.offset is None
    row = generator.synthesis.style_rows[generator.synthesis.style_names.index("b16.conv1")]
    styles = generator.synthesis.b16.conv1.affine(discovery.sample_w(generator, 500, 0))
    (offset,) = direction.style.values()
    assert offset.nonzero().flatten().tolist() == [3] and f"row {row}" in direction.description
    assert float(offset[3]) == pytest.approx(float(styles.std(dim=0)[3]), rel=1e-4)
    for layer, channel in (("b64.conv1", 0), ("b16.conv1", 16), ("b16.conv1", [])):
        with pytest.raises(InvalidInputError):
            discovery.style_direction(generator, layer, channel)


def test_calibration_makes_strength_one_a_standard_deviation(generator):
    stds = 4.0 * 0.8 ** torch.arange(WIDTH)
    basis = planted(generator, stds)
    w = discovery.sample_w(generator, 4000)
    raw = Direction("raw", -7 * basis[2:3], unit=-0.1, layers=(2, 5))
    calibrated = discovery.calibrate(raw, generator, w)
    step = calibrated.delta(generator.broadcast(w[:1]), 1.0)[0, 2]
    torch.testing.assert_close(step, stds[2] * basis[2], atol=0.1, rtol=0)  # the sign is kept
    assert calibrated.limits == pytest.approx((-3.0, 3.0))


def test_calibration_to_a_pixel_change_gives_that_change(generator):
    w = discovery.sample_w(generator, 50)
    for raw in (
        Direction("w", unit_rows(1, WIDTH), unit=-1.0),
        Direction("s", style={"b8.conv1": unit_rows(16)}),
    ):
        calibrated = discovery.calibrate(raw, generator, w, target=0.02)
        some = generator.broadcast(w[:4])
        styles = generator.synthesis.styles(some)
        edit = Edit.of(calibrated, 1.0)
        for index, name in enumerate(generator.synthesis.style_names):
            styles[index] = generator.synthesis.styles(edit.apply(some))[index] + edit.style_offsets().get(name, 0)
        change = (generator.synthesis(some, styles=styles) - generator.synthesis(some)).abs().mean()
        assert float(change) == pytest.approx(0.02, rel=0.01)
        assert calibrated.unit * raw.unit > 0 and calibrated.limits[1] > 0
        wider = discovery.calibrate(raw, generator, w, target=0.04)
        assert wider.limits[1] < calibrated.limits[1], "a longer unit reaches the end of the range sooner"


def test_calibration_refuses_what_it_cannot_scale(generator):
    w = discovery.sample_w(generator, 10)
    dead = torch.zeros(ROWS, WIDTH)
    dead[0] = 1
    for raw, arguments, message in (
        (Direction("a", torch.ones(1, WIDTH), coordinate=Coordinate(torch.zeros(WIDTH), 1.0)), {}, "'a' is absolute"),
        (Direction("nothing there", dead, layers=(3, 5)), {}, "'nothing there' does not change"),
        (Direction("w", torch.ones(1, WIDTH)), {"target": 0.0}, "target 0.0"),
        (Direction("w", torch.ones(1, WIDTH)), {"target": 1e9}, "'w' changes the picture by less"),
        (Direction("foreign layer", style={"b999.conv1": torch.ones(16)}), {}, "b999.conv1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            discovery.calibrate(raw, generator, w, **arguments)


def test_discovery_says_how_many_directions_and_rows_there_are(generator):
    for call in (
        lambda: discovery.sefa(generator, WIDTH + 1),
        lambda: discovery.sefa(generator, 1, layers=(3, ROWS + 1)),
        lambda: discovery.pca_of_w(generator, 0),
        lambda: discovery.pca_of_w(generator, 1, samples=1),
    ):
        with pytest.raises(InvalidInputError):
            call()
