"""The command `gan-inversion evaluate`: finds models and photographs, measures with core/evaluation.py, writes results."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import GANInversionError, InvalidInputError, ModelNotFoundError

if TYPE_CHECKING:  # the command line must start without torch
    from PIL import Image
    from torch import Tensor, nn

    from ...core.editing import Direction
    from ...core.evaluation import AttributeTest, EditTest, Measures, Method, MethodReport, Photographs
    from ...core.generator import Generator
    from ...model_registry import LoadedModel

logger = logging.getLogger(__name__)

DEFAULT_GENERATOR = "portraits"
_BUNDLED_MODELS = {
    "e4e": "portraits-e4e", "restyle-e4e": "portraits-restyle-e4e", "psp": "portraits-psp",
    "restyle-psp": "portraits-restyle-psp", "stylegan2-discriminator": "portraits-discriminator",
}  # fmt: skip
_IDENTITY, _TRUNK, _LPIPS, _YUNET = "portraits-identity", "portraits-perceptual", "lpips-vgg", "yunet"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_ALL = "all"
_LARGE = 256  # pixels: above this side, images are worked on one at a time by default
_SHEET_COLUMNS, _SHEET_MAX = 12, 48
_MEASURED_LANDMARKS = 200  # photographs on which two landmark nets are compared
_COLUMNS = (
    ("method", "method", "{}"), ("images", "images", "{}"), ("psnr", "PSNR", "{:.2f}"),
    ("psnr_min", "worst", "{:.2f}"), ("mse", "MSE", "{:.4f}"),
    ("ssim", "SSIM", "{:.4f}"), ("ms_ssim", "MS-SSIM", "{:.4f}"), ("lpips", "LPIPS*", "{:.4f}"), ("id", "ID*", "{:.4f}"),
    ("frechet", "Frechet*", "{:.4g}"), ("psnr_in_domain", "PSNR in", "{:.2f}"),
    ("psnr_out_of_domain", "PSNR out", "{:.2f}"), ("mask_iou", "IoU", "{:.3f}"), ("aoa", "AOA", "{:.3f}"),
    ("seconds", "s/image", "{:.3f}"), ("peak_memory_mb", "MB", "{:.0f}"),
)  # fmt: skip
_EDIT_COLUMNS = (
    ("mouth_wider_percent", "mouth wider %", "{:.1f}"), ("wider_in", "wider in", "{:.0%}"),
    ("id_to_inversion", "ID to inversion", "{:.3f}"), ("id_to_source", "ID to photo", "{:.3f}"),
    ("id_other_people", "ID other people", "{:.3f}"), ("nearer_to_real_smile", "nearer to real smile", "{:.0%}"),
    ("psnr_out_of_domain", "PSNR out", "{:.2f}"), ("psnr_in_mask", "PSNR in mask", "{:.2f}"),
)  # fmt: skip
_ATTRIBUTE_COLUMNS = (
    ("direction", "direction", "{}"), ("alpha", "alpha", "{:+g}"), ("attribute", "measured", "{}"),
    ("change", "change", "{}"), ("id_to_source", "ID to photo", "{:.3f}"), ("id_to_inversion", "ID to inversion", "{:.3f}"),
    ("smile_width", "smile %", "{:+.1f}"), ("mouth_opening", "mouth", "{:+.3f}"), ("yaw", "yaw deg", "{:+.1f}"),
    ("brightness", "light", "{:+.3f}"), ("sharpness", "sharp %", "{:+.1f}"),
)  # fmt: skip
_ALPHAS = "-2,2"
_SYNONYMS = {"pose": ("yaw", "rotation"), "yaw": ("pose", "rotation"), "smiling": ("smile",)}  # as directions are named


@dataclass
class Evaluation:
    """What the command found."""

    data: dict[str, Any]  # as in the JSON file
    table: str
    files: list[Path] = field(default_factory=list)


def add_command(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds `evaluate` to the sub-commands of a parser."""
    parser = commands.add_parser(
        "evaluate", parents=[common], help="measure inversion methods, edits and samples on photographs"
    )
    parser.add_argument(
        "--methods", metavar="A,B,...",
        help="what to measure, e.g. e4e,w,w-plus; 'all' is every method whose models are here",
    )  # fmt: skip
    parser.add_argument("--samples", metavar="N", type=int, help="in place of methods: N random faces of the generator")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--portraits", metavar="DIR", type=Path, help="folder with info.csv and landmarks.json")
    data.add_argument("--images", metavar="DIR", type=Path, help="folder of photographs")
    parser.add_argument(
        "--split", choices=("test", "train"), default="test", help="people of --portraits; default: test"
    )
    parser.add_argument(
        "--align", action=argparse.BooleanOptionalAction, default=True,
        help="cut out the face found in each of --images; --no-align for aligned crops such as CelebA-HQ",
    )  # fmt: skip
    parser.add_argument(
        "--occluders", metavar="SEED", type=int, help="put seeded objects with exact masks on the photographs first"
    )
    parser.add_argument("--limit", metavar="N", type=int, help="only the first N photographs")
    parser.add_argument("--generator", metavar="ID_OR_FILE", default=DEFAULT_GENERATOR)
    parser.add_argument(
        "--model", "--encoder", metavar="NAME=ID_OR_FILE", dest="models", action="append", default=[],
        help="model that the methods know as NAME, e.g. e4e=e4e-ffhq or samm=FILE; may be given several times",
    )  # fmt: skip
    parser.add_argument("--steps", metavar="N", type=int, help="of the optimising methods; default: their own")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of what is random; default: 0")
    parser.add_argument("--batch", metavar="N", type=int, help=f"images at a time; default: 8, or 1 above {_LARGE} px")
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument("--size", metavar="N", type=int, help="measure at this size; default: the generator's")
    parser.add_argument(
        "--lpips", metavar="NAME",
        help=f"network of the perceptual distance; {_LPIPS} is downloaded if need be; default: {_LPIPS} if it is here, "
        f"else {_TRUNK}",
    )  # fmt: skip
    parser.add_argument(
        "--identity", metavar="ID_OR_FILE", help=f"embedding for ID; default: {_IDENTITY}, for portraits"
    )
    parser.add_argument(
        "--edit", metavar="NAME[:STRENGTH]", help="also measure an edit: smile, a direction's catalogue id or file"
    )
    parser.add_argument(
        "--attributes", metavar="A,B,...",
        help="also measure what directions do to smile, mouth, yaw and light, and to the identity: smile, pose, age, "
        "catalogue ids or files",
    )  # fmt: skip
    parser.add_argument(
        "--alphas", metavar="X,Y,...", default=_ALPHAS,
        help=f"strengths for --attributes, in each direction's own unit; default: {_ALPHAS}",
    )  # fmt: skip
    # A list that begins with a minus is a value too, as a single negative number is anyway.
    parser._negative_number_matcher = re.compile(r"^-[\d.]")
    parser.add_argument(
        "--landmarks-net", metavar="DIR", type=Path,
        help="face-api.js weights (face_landmark_68_model) that measure the mouth in place of the bundled net",
    )  # fmt: skip
    parser.add_argument(
        "--runs", metavar="DIR", type=Path, help="for --samples: where training keeps morphs.safetensors; default: none"
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="where the results are written")
    parser.add_argument(
        "--sheet", metavar="FILE.png", type=Path, help="contact sheet; it shows real people: look, do not publish"
    )
    return parser


def run_evaluation(options: argparse.Namespace) -> Evaluation:
    """Does what the command line says (see `add_command`).

    Raises:
        InvalidInputError: options that do not go together, an unknown method, no usable photograph.
        ModelNotFoundError: a model of a method that was named is missing; nothing was run.
        GANInversionError: whatever ends all methods.
    """
    _check(options)
    import torch

    from ...core.training.common import keep_freed_memory
    from ...model_registry import load_model

    keep_freed_memory()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"--device {options.device}: torch sees no such device here. Use --device cpu.")
    for path in (options.json, options.sheet):
        if path is not None:
            from ...core.files import check_destination

            check_destination(path)
    loaded = load_model(options.generator, architecture="stylegan2", device=device)
    with _progress() as progress:
        if options.samples is not None:
            evaluation, sheet = _evaluate_samples(options, loaded, device)
        else:
            evaluation, sheet = _evaluate_methods(options, loaded, device, progress)
    if options.json is not None:
        _write_json(evaluation.data, options.json)
        evaluation.files.append(options.json)
    if options.sheet is not None:
        _write_sheet(sheet(), options.sheet)
        evaluation.files.append(options.sheet)
    return evaluation


def _check(options: argparse.Namespace) -> None:
    if (options.methods is None) == (options.samples is None):
        raise InvalidInputError("evaluate: give either --methods A,B,... or --samples N.")
    if options.methods is not None and options.portraits is None and options.images is None:
        raise InvalidInputError("evaluate --methods: give photographs by --portraits DIR or --images DIR.")
    if options.samples is not None and (
        options.images is not None or options.edit or options.attributes or options.occluders is not None
    ):
        raise InvalidInputError(
            "evaluate --samples goes with --portraits only, not with --images, --edit, --attributes, --occluders."
        )
    _alphas(options.alphas)
    for name in ("limit", "steps", "batch", "size", "samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InvalidInputError(f"--{name} {value}: expected 1 or more.")


# --- methods ---------------------------------------------------------------------------------------------------------


def _evaluate_methods(
    options: argparse.Namespace, loaded: LoadedModel, device: Any, progress: Callable[[str, int], None]
) -> tuple[Evaluation, Callable[[], Image.Image]]:
    from ...core import evaluation
    from ...model_registry.perceptual import available_distance

    generator: Generator = loaded.module  # type: ignore[assignment]
    every = options.methods == _ALL
    names = list(evaluation.METHODS) if every else [name.strip() for name in options.methods.split(",") if name.strip()]
    methods = evaluation.find_methods(names)
    models, missing = _models(methods, options, loaded, device)
    skipped = []
    for method in methods:
        absent = [name for name in method.needs if name in missing]
        if absent and not every:
            raise ModelNotFoundError(f"Method {method.name} cannot run: {missing[absent[0]]} Nothing was measured.")
        if absent:
            skipped.append({"method": method.name, "why": missing[absent[0]]})
    runnable = [method for method in methods if method.name not in {entry["method"] for entry in skipped}]
    if not runnable:
        raise ModelNotFoundError("No method could run: " + " ".join(entry["why"] for entry in skipped))
    attributes, about = _attributes(options, loaded)
    measures, described = _measures(options, loaded, device)
    photographs, facts, left_out = _photographs(options, generator.resolution)
    edit = _edit(options, photographs, measures, device)
    batch = options.batch or (1 if generator.resolution > _LARGE else 8)
    distance = available_distance(size=None) if any(method.compares for method in runnable) else None
    context = evaluation.Context(
        generator, {name: model.module for name, model in models.items()}, options.steps, options.seed, distance
    )
    settings = {
        **_machine(device),
        "generator": _identify(loaded),
        "models": {name: _identify(model) for name, model in models.items()},
        "methods": {method.name: method.settings(context) for method in runnable},
        "images": len(photographs),
        "batch": batch,
        "seed": options.seed,
        **facts,
        **_conventions(options.size, generator.resolution),
        **described,
    }
    if edit is not None:
        settings["edit"] = _edit_settings(options, edit, photographs, measures)
    if attributes is not None:
        settings["attributes"] = about
    rows, reports = [], []
    for method in runnable:
        try:
            report = evaluation.evaluate_method(
                method, photographs, context, measures,
                batch=batch, edit=edit, attributes=attributes, keep=_SHEET_MAX, progress=progress,
            )  # fmt: skip
        except GANInversionError as error:
            logger.warning("%s could not be measured: %s", method.name, error)
            skipped.append({"method": method.name, "why": f"It failed on every photograph: {error}"})
            continue
        rows.append(report.row)
        reports.append(report)
    if not rows:
        raise InvalidInputError(
            "No method could be measured. " + " ".join(f"{e['method']}: {e['why']}" for e in skipped)
        )
    data: dict[str, Any] = {"settings": settings, "rows": rows, "skipped": skipped, "left_out": left_out}
    return Evaluation(data, _table(data)), lambda: _methods_sheet(photographs, reports, edit)


def _models(
    methods: Sequence[Method], options: argparse.Namespace, loaded: LoadedModel, device: Any
) -> tuple[dict[str, LoadedModel], dict[str, str]]:
    """The models that the methods need or want, by name, and why the needed ones that are missing are."""
    from ...model_registry import load_model
    from ...model_registry.architectures import ARCHITECTURES

    architectures = {one.name for one in ARCHITECTURES}
    given = dict(_assignment(text) for text in options.models)
    needed = list(dict.fromkeys(name for method in methods for name in method.needs))
    wanted = list(dict.fromkeys(name for method in methods for name in method.wants))
    if unknown := [name for name in given if name not in {*needed, *wanted}]:
        raise InvalidInputError(
            f"--model {unknown[0]}=...: none of the methods uses a model of that name. They use "
            f"{', '.join(dict.fromkeys([*needed, *wanted])) or 'no model'}."
        )
    models, missing = {}, {}
    for name in dict.fromkeys([*needed, *wanted]):
        found, problem = (given[name], "") if name in given else _default_model(name, loaded)
        if found is None:
            missing[name] = problem
            continue
        part = "discriminator" if name == "stylegan2-discriminator" else None
        architecture = name if name in architectures else None
        models[name] = load_model(found, part=part, architecture=architecture, device=device)
    for name, model in models.items():
        _check_fit(name, model, loaded, models.get("e4e"))
    return models, missing


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InvalidInputError(f"--model {text}: expected NAME=ID_OR_FILE, for example e4e=e4e-ffhq.")
    return name, value


def _default_model(name: str, loaded: LoadedModel) -> tuple[str | None, str]:
    """(catalogue id, "") of the model a method knows as `name`, for this generator and on this machine; or why not."""
    from ...model_registry import catalogue

    entries = catalogue.load_catalogue()
    own = next((entry for entry in entries if entry.id == loaded.catalogue_id), None)
    if own is None:
        return None, f"Nothing is known of models for {loaded.path.name}: name one by --model {name}=ID_OR_FILE."
    bundled = _BUNDLED_MODELS.get(name) if own.id == DEFAULT_GENERATOR else None
    fitting = [
        entry
        for entry in entries
        if (entry.id == bundled if bundled else entry.architecture == name and entry.domain == own.domain)
        and entry.resolution in (None, own.resolution)
    ]
    here = [entry.id for entry in fitting if _is_here(entry.id)]
    if here:
        return here[0], ""
    if not fitting:
        return None, f"The catalogue has no {name!r} for the generator {own.id}: give one by --model {name}=FILE."
    # Gigabytes are not fetched without being asked for.
    return None, f"{fitting[0].id} is not on this machine: --model {name}={fitting[0].id} fetches it."


def _is_here(model_id: str) -> bool:
    from ...model_registry import catalogue

    try:
        path, problem = catalogue.locate(catalogue.find(model_id), verify=False)
    except ModelNotFoundError:
        return False
    return path is not None and problem is None


def _check_fit(name: str, model: LoadedModel, loaded: LoadedModel, e4e: LoadedModel | None) -> None:
    """A model of another generator is an error before anything runs; SAMM must fit the e4e encoder, too."""
    from ...core.encoders import Encoder
    from ...core.errors import GeneratorMismatchError
    from ...core.reganie import Reganie
    from ...core.samm import Samm

    generator: Generator = loaded.module  # type: ignore[assignment]
    if isinstance(model.module, Samm):
        try:
            model.module.check_fit(generator, None if e4e is None else e4e.module)  # type: ignore[arg-type]
        except (GeneratorMismatchError, InvalidInputError) as error:
            raise type(error)(
                f"The network {model.path.name} for {name} does not fit {loaded.path.name}. {error}"
            ) from error
    if isinstance(model.module, Reganie):  # whose sizes adapt
        domain = model.module.config.domain or model.domain
        if None not in (domain, loaded.domain) and domain != loaded.domain:
            raise GeneratorMismatchError(
                f"The network {model.path.name} for {name} was trained for {domain} pictures, the generator "
                f"{loaded.path.name} draws {loaded.domain}: give the network of this generator by --model "
                f"{name}=ID_OR_FILE."
            )
    if not isinstance(model.module, Encoder):
        return
    found, expected = (model.module.num_ws, model.module.w_dim), (generator.num_ws, generator.config.w_dim)
    if found != expected:
        raise GeneratorMismatchError(
            f"The encoder {model.path.name} for {name} gives codes {list(found)}, the generator {loaded.path.name} takes "
            f"{list(expected)}: give the encoder of this generator by --model {name}=ID_OR_FILE."
        )


def _identify(model: LoadedModel) -> dict[str, Any]:
    return {
        "name": model.catalogue_id or model.path.name,
        "architecture": model.architecture,
        "identity": model.identity,
    }


# --- photographs -----------------------------------------------------------------------------------------------------


def _photographs(options: argparse.Namespace, size: int) -> tuple[Photographs, dict[str, Any], list[dict[str, str]]]:
    """What to invert, what the settings say of it, and what was left out of it with the reason."""
    from ...core.evaluation import Photographs
    from ...core.imaging import from_uint8
    from ...core.training.occluders import occlude
    from ...core.training.portraits import load_people, load_smiles

    left_out: list[dict[str, str]] = []

    def leave_out(name: str, why: str) -> None:
        logger.warning("%s is left out: %s", name, why)
        left_out.append({"name": name, "why": why})

    facts: dict[str, Any] = {}
    if options.portraits is not None:
        names, images = load_people(options.portraits, options.split, size, on_problem=leave_out)
        photographs = Photographs(names[: options.limit], images[: options.limit])
        facts["data"] = {"portraits": options.split, "alignment": "FFHQ crop by the folder's own landmarks"}
    else:
        names, pixels = _load_folder(options, size, leave_out)
        photographs = Photographs(names, lambda rows: from_uint8(pixels[rows]))
        alignment = "FFHQ crop of the largest face found" if options.align else "none: largest centred square"
        facts["data"] = {
            "images": options.images.name, "alignment": f"{alignment}; rounded to 8 bits, as a written crop would be",
        }  # fmt: skip
    if options.occluders is not None:
        clean = photographs.rows(range(len(photographs)))
        occluded = occlude(clean, range(options.occluders, options.occluders + len(photographs)))
        photographs = Photographs(photographs.names, occluded.images, occluded.masks)
        facts["occluders"] = {
            "first_seed": options.occluders,
            "placed": "where an FFHQ crop has eyes and mouth",
            "kinds": {name: list(kinds) for name, kinds in zip(photographs.names, occluded.kinds, strict=True)},
            "covered": float(occluded.masks.mean()),
        }
    if options.portraits is not None and options.edit and _edit_name(options.edit)[0].endswith("smile"):
        smiles = load_smiles(options.portraits, photographs.names, size, same_frame=True, on_problem=leave_out)
        photographs = dataclasses.replace(photographs, smiles=smiles)
    facts["left_out"] = len(left_out)
    return photographs, facts, left_out


def _load_folder(
    options: argparse.Namespace, size: int, leave_out: Callable[[str, str], None]
) -> tuple[list[str], Tensor]:
    """Names and crops, uint8 [N, size, size, 3]: a thousand at 1024 px must fit into memory."""
    import torch

    from ...core.alignment import CropTransform, align
    from ...core.imaging import load_image, to_uint8
    from ...core.training.portraits import align_face
    from ...model_registry import catalogue

    if not options.images.is_dir():
        raise InvalidInputError(f"--images {options.images}: no such folder.")
    files = sorted(path for path in options.images.iterdir() if path.suffix.lower() in _SUFFIXES)
    yunet = catalogue.locate(catalogue.find(_YUNET))[0] if _is_here(_YUNET) else None
    names: list[str] = []
    images: list[Tensor] = []
    for path in files:
        if options.limit is not None and len(names) == options.limit:
            break
        try:
            photograph = load_image(path)
            if options.align:
                crop = align_face(photograph, size, yunet_path=yunet)
            else:
                whole = CropTransform.whole_square((photograph.shape[2], photograph.shape[3]), size)
                crop = align(photograph, whole)
        except GANInversionError as error:
            leave_out(path.name, str(error))
            continue
        names.append(path.name)
        images.append(to_uint8(crop))
    if not images:
        raise InvalidInputError(
            f"--images {options.images}: {len(files)} picture file(s), none of which could be used. "
            "Use --no-align for pictures that are already aligned, or that show no faces."
        )
    return names, torch.cat(images)


# --- what is measured with ---------------------------------------------------------------------------------------------


def _measures(options: argparse.Namespace, loaded: LoadedModel, device: Any) -> tuple[Measures, dict[str, Any]]:
    """The networks behind the numbers, and what the settings say of them."""
    from ...core.evaluation import Measures

    described: dict[str, Any] = {}
    perceptual, described["lpips"] = _perceptual(options.lpips)
    embed, described["id"] = _identity(options.identity, loaded, device)
    features, described["frechet"] = _feature_space(device)
    landmarks, extra = _landmarks(options, device) if options.edit or options.attributes else (None, {})
    described = {key: value for key, value in {**described, **extra}.items() if value is not None}
    return Measures(perceptual, embed, features, landmarks, options.size), described


def _perceptual(name: str | None) -> tuple[Any, str]:
    from ...model_registry.perceptual import available_distance, perceptual_distance

    distance = available_distance((_LPIPS,)) if name is None else perceptual_distance(name)
    return distance, _perceptual_words(distance.name)


def _perceptual_words(name: str) -> str:
    if name == _LPIPS:
        return "lpips-vgg: LPIPS v0.1 on VGG16; images above 256 px are area-downsampled to 256 first"
    return f"{name}: a network of this package's own; its distances are not LPIPS and compare with each other only"


def _identity(name: str | None, loaded: LoadedModel, device: Any) -> tuple[Any, str | None]:
    from ...model_registry import load_model

    if name is None:
        if loaded.domain not in (None, "portraits") or not _is_here(_IDENTITY):
            return None, None
        name = _IDENTITY
    model = load_model(name, device=device)
    label = model.catalogue_id or model.path.name
    own = ", a small network of this package's own, not ArcFace" if label == _IDENTITY else ""
    return model.module, f"mean cosine of embeddings by {label} (identity {model.identity}){own}"


def _feature_space(device: Any) -> tuple[Any, str | None]:
    from ...core.landmarks import load_landmark_net
    from ...model_registry import load_model

    note = "not an Inception FID; compare only among runs with this space and this number of images"
    if _is_here(_TRUNK):
        model = load_model(_TRUNK, device=device)
        return _pooled(model.module), f"position means of all taps of {_TRUNK} (identity {model.identity}); {note}"
    net = load_landmark_net(device=device)

    def features(images: Tensor) -> Tensor:
        from ...core.imaging import resize_antialiased
        from ...core.landmarks import INPUT_SIZE

        small = resize_antialiased(images, INPUT_SIZE)
        return net.level_6(net.level_12(net.level_24(net.stem(small)))).mean(dim=(2, 3))

    return features, f"position means of the last feature map of the bundled landmark net; {note}"


def _pooled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Position means of every feature map a network gives, side by side."""

    def features(images: Tensor) -> Tensor:
        import torch

        found = module(images)
        taps = list(found) if isinstance(found, (list, tuple)) else [found]
        return torch.cat([tap.mean(dim=(2, 3)) if tap.ndim == 4 else tap for tap in taps], dim=1)

    return features


def _landmarks(options: argparse.Namespace, device: Any) -> tuple[Any, dict[str, Any]]:
    from ...core.evaluation import aligned_landmarks
    from ...core.landmarks import load_landmark_net

    if options.landmarks_net is None:
        net = load_landmark_net()
        words = "the bundled landmark net (trained by this project: not an independent judge)"
        return lambda images: aligned_landmarks(net, images), {"landmarks": words}
    from ...core.face_api_landmarks import load_face_api_landmarks, predict_face_api_landmarks

    other = load_face_api_landmarks(options.landmarks_net, device)
    words = "face-api.js face_landmark_68_model (independent of this project), three sizes and mirror images averaged"
    return lambda images: predict_face_api_landmarks(other, images), {"landmarks": words}


def _edit(options: argparse.Namespace, photographs: Photographs, measures: Measures, device: Any) -> EditTest | None:
    if not options.edit:
        return None
    from ...core.editing import Edit
    from ...core.evaluation import EditTest, similarity_between_people
    from ...model_registry import load_direction

    name, strength = _edit_name(options.edit)
    candidates = [one for one in (name, f"{DEFAULT_GENERATOR}-{name}") if Path(one).is_file() or _is_here(one)]
    direction = load_direction(candidates[0] if candidates else name)
    other = None
    if measures.embed is not None and options.portraits is not None:
        other = similarity_between_people(measures.embed, photographs.rows(range(len(photographs))).to(device))
    return EditTest(Path(name).stem, strength, Edit.of(direction, strength), other)


def _edit_name(text: str) -> tuple[str, float]:
    """NAME[:STRENGTH] -> (name, strength, by default 1). A name may hold a colon, as paths on Windows do."""
    name, _, last = text.rpartition(":")
    try:
        return (name, float(last)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0


def _attributes(options: argparse.Namespace, loaded: LoadedModel) -> tuple[AttributeTest | None, dict[str, Any]]:
    """The directions to measure, and what the settings say of them; None where none are asked for.

    Raises InvalidInputError for no name, GeneratorMismatchError for a direction of another generator, and as
    `load_direction`.
    """
    if not options.attributes:
        return None, {}
    from ...core.attributes import ATTRIBUTES, BUNDLED_LIMITS, attribute_of_direction
    from ...core.evaluation import AttributeTest

    generator: Generator = loaded.module  # type: ignore[assignment]
    names = list(dict.fromkeys(name.strip() for name in options.attributes.split(",") if name.strip()))
    directions: dict[str, Direction] = {}
    about: dict[str, Any] = {}
    for name in names:
        source, direction = _direction_named(name, loaded)
        direction.delta(generator.broadcast(generator.w_avg[None]), 1.0)  # of another generator: now, not after hours
        key = Path(name).stem if Path(name).is_file() else name
        directions[key] = direction
        meant = attribute_of_direction(key)
        about[key] = {"direction": source, "natural_strengths": list(direction.limits), "measured": meant}
    if not directions:
        raise InvalidInputError(f"--attributes {options.attributes!r}: name a direction, for example smile,pose.")
    test = AttributeTest(directions, _alphas(options.alphas))
    units = {key: {"value": one.unit, "change": one.change_unit} for key, one in ATTRIBUTES.items()}
    words = "mean over the photographs of the edited picture's against the method's own unedited picture's"
    limits = {} if options.landmarks_net is not None else {"limits": f"{BUNDLED_LIMITS} --landmarks-net takes another."}
    return test, {"alphas": list(test.alphas), "directions": about, "change": words, "units": units, **limits}


def _alphas(text: str) -> tuple[float, ...]:
    """Strengths out of "X,Y,...", each once."""
    try:
        alphas = tuple(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
    except ValueError:
        alphas = ()
    if not alphas or not all(map(math.isfinite, alphas)):
        raise InvalidInputError(f"--alphas {text}: expected finite numbers with commas, for example {_ALPHAS}.")
    return alphas


def _direction_named(name: str, loaded: LoadedModel) -> tuple[str, Direction]:
    """(id or file name, direction) of a file, a catalogue id, or an attribute's name for this generator's domain."""
    from ...model_registry import catalogue, load_direction

    if Path(name).is_file():
        return Path(name).name, load_direction(name)
    entries = [entry for entry in catalogue.load_catalogue() if entry.kind == "direction"]
    if not any(entry.id == name for entry in entries):
        domain = loaded.domain or DEFAULT_GENERATOR
        known = (one for one in (name, *_SYNONYMS.get(name, ())))
        fitting = [e.id for one in known for e in entries if e.domain == domain and e.id.endswith(f"-{one}")]
        # Those on this machine first; the others are small enough to fetch.
        name = next((found for found in fitting if _is_here(found)), fitting[0] if fitting else name)
    return name, load_direction(name)


def _edit_settings(
    options: argparse.Namespace, edit: EditTest, photographs: Photographs, measures: Measures
) -> dict[str, Any]:
    """What the settings say of an edit: also how far the landmark nets agree, and what real smiles do to the mouth."""
    import torch

    from ...core import evaluation
    from ...core.landmarks import load_landmark_net

    found: dict[str, Any] = {"name": edit.name, "strength": edit.strength}
    if measures.landmarks is None:
        return found
    shown = min(len(photographs), _MEASURED_LANDMARKS)
    images = photographs.rows(range(shown))
    points = measures.landmarks(images)
    if options.landmarks_net is not None:
        bundled = evaluation.aligned_landmarks(load_landmark_net(), images)
        agreement = evaluation.landmark_agreement(bundled, points)
        found["bundled_landmarks_to_these_in_eye_distances"] = agreement
    smiling = [row for row, name in enumerate(photographs.names[:shown]) if name in photographs.smiles]
    if smiling:
        smiles = torch.cat([photographs.smiles[photographs.names[row]] for row in smiling])
        before, after = evaluation.mouth_widths(points[smiling]), evaluation.mouth_widths(measures.landmarks(smiles))
        found["real_smiles_mouth_wider_percent"] = float(100 * (after / before - 1).mean())
        found["real_smiles"] = "found in the smiling photographs by face detection, FFHQ crop"
    return found


def _conventions(size: int | None, resolution: int) -> dict[str, Any]:
    import torch

    from ...core import evaluation, metrics

    measured = min(size or resolution, resolution)
    probe = torch.zeros(1, 3, measured, measured)
    structure: dict[str, Any] = {}
    try:
        metrics.ssim(probe, probe)
        structure["ssim"] = "11x11 Gaussian window, sigma 1.5, on [0, 1], windows inside the image (as BasicSR)"
        structure["ms_ssim"] = f"{metrics.ms_ssim_scales(measured)} scales, their published weights renormalised"
    except GANInversionError as error:
        structure["ssim"] = structure["ms_ssim"] = f"not measured: {error}"
    return {
        "resolution": resolution,
        "image_size": measured,
        "value_range": "[-1, 1]; drawn images are clamped to it, no rounding to 8 bits",
        "mse": "mean squared error on [-1, 1], per image, then the mean; 4 times the value on [0, 1]",
        "psnr": evaluation.PSNR_FORMULA,
        **structure,
        "mask_iou": "predicted and exact mask, both thresholded at 0.5",
        "psnr_in_domain": "PSNR over the pixels outside the exact mask",
        "psnr_out_of_domain": "PSNR over the pixels inside it",
        "seconds": "wall time of the method alone per image, after a warm-up; drawing the result not included",
        "peak_memory_mb": "tensors on the GPU at once, models included, in 10^6 bytes; not known on a CPU",
        "intervals": "95 %, bootstrap over the images",
    }


def _machine(device: Any) -> dict[str, Any]:
    import torch

    from .cli import version

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "versions": {"gan-inversion": version(), "torch": torch.__version__, "python": platform.python_version()},
    }


# --- samples -----------------------------------------------------------------------------------------------------------


def _evaluate_samples(
    options: argparse.Namespace, loaded: LoadedModel, device: Any
) -> tuple[Evaluation, Callable[[], Image.Image]]:
    from ...core import evaluation
    from ...core.training.portraits import load_people

    generator: Generator = loaded.module  # type: ignore[assignment]
    measures, described = _measures(options, loaded, device)
    left_out: list[dict[str, str]] = []
    training = morphs = None
    if options.portraits is not None:
        _, training = load_people(
            options.portraits, "train", generator.resolution,
            on_problem=lambda name, why: left_out.append({"name": name, "why": why}),
        )  # fmt: skip
        morphs = _fresh_morphs(options, generator.resolution, 2 * options.samples)
    batch = options.batch or (1 if generator.resolution > _LARGE else 8)
    report = evaluation.evaluate_samples(
        generator, options.samples, measures, seed=options.seed, training=training, morphs=morphs, batch=batch
    )
    nearness = evaluation.nearness_name(measures)
    settings = {
        **_machine(device),
        "generator": _identify(loaded),
        "image_size": generator.resolution,
        "seed": options.seed,
        "nearest_distance": "to the aligned neutral photographs of the training people and their mirror images, by "
        + {"id": "1 - id", "lpips": "lpips", "multiscale": "the multi-scale L1 distance"}[nearness],
        "fresh_morphs": "drawn with seeds no training uses, from the training people",
        **described,
    }
    data = {"settings": settings, "rows": [], "samples": report.values, "skipped": [], "left_out": left_out}

    def sheet() -> Image.Image:
        rows: dict[str, Tensor] = {}
        for name, pictures in report.samples.items():
            rows[name] = pictures
            if name in report.nearest:
                rows[f"nearest to {name.partition(' ')[2]}"] = report.nearest[name]
        return _sheet(rows)

    return Evaluation(data, _samples_table(report.values)), sheet


def _fresh_morphs(options: argparse.Namespace, size: int, count: int) -> Tensor:
    """[count, 3, size, size]: morphs of the training people that no trainer draws."""
    import torch

    from ...core.training.common import load_morphs, step_generator
    from ...core.training.morphs import MorphModel

    bank = load_morphs(options.portraits, options.runs) if options.runs else MorphModel.build(options.portraits)
    codes = bank.draw_codes(count, step_generator(options.seed, 0, stream=_FRESH_STREAM))
    return torch.cat([bank.render(part, size) for part in codes.split(16)]).clamp(-1, 1)


_FRESH_STREAM = 999  # of `step_generator`; the trainers count theirs from 0


# --- what is written -----------------------------------------------------------------------------------------------------


def _write_json(data: Mapping[str, Any], path: Path) -> None:
    from ...core.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_sheet(sheet: Image.Image, path: Path) -> None:
    from ...core.files import replacing

    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _methods_sheet(photographs: Photographs, reports: Sequence[MethodReport], edit: EditTest | None) -> Image.Image:
    rows = {"photograph": photographs.rows(range(min(len(photographs), _SHEET_MAX)))}
    for report in reports:
        rows[report.row["method"]] = report.images
        if edit is not None and report.edited is not None:
            rows[f"{report.row['method']} {edit.name} {edit.strength:+g}"] = report.edited
    return _sheet(rows)


def _sheet(rows: Mapping[str, Tensor]) -> Image.Image:
    """Bands of a few columns, each with all rows; the first pictures only, so that the file stays viewable."""
    import torch

    from ...core.latents import draw_grid

    count = min(_SHEET_MAX, len(next(iter(rows.values()))))
    columns = min(_SHEET_COLUMNS, count)
    pictures, labels = [], []
    for start in range(0, count, columns):
        for label, images in rows.items():
            part = images[start : min(start + columns, count)]
            blank = torch.ones(columns - len(part), *part.shape[1:])
            pictures.append(torch.cat((part, blank)))
            labels.append(label)
    return draw_grid(torch.cat(pictures), row_labels=labels, columns=columns)


def _table(data: Mapping[str, Any]) -> str:
    rows = data["rows"]
    lines = [_columns(rows, _COLUMNS)]
    starred = [f"* {name}: {data['settings'][name]}" for name in ("lpips", "id", "frechet") if name in data["settings"]]
    lines.append("\n".join(starred))
    edits = [{"method": row["method"], **row["edit"]} for row in rows if "edit" in row]
    if edits:
        head = f"{edits[0]['name']}, strength {edits[0]['strength']:g}; mouth by {data['settings'].get('landmarks')}"
        lines.append(head + "\n" + _columns(edits, (_COLUMNS[0], *_EDIT_COLUMNS)))
    if effects := _attributes_table(rows):
        head = "attribute response; change: edited against the method's own unedited picture; mouth and head by "
        lines.append(f"{head}{data['settings'].get('landmarks')}\n{effects}")
        lines.append(data["settings"]["attributes"].get("limits", ""))
    for entry in data["skipped"]:
        lines.append(f"skipped {entry['method']}: {entry['why']}")
    failures = [f"{row['method']} failed on {f['name']}: {f['why']}" for row in rows for f in row.get("failed", ())]
    lines += failures
    if data["left_out"]:
        lines.append(f"{len(data['left_out'])} photograph(s) left out:")
        lines += [f"  {entry['name']}: {entry['why']}" for entry in data["left_out"]]
    return "\n\n".join(line for line in lines if line)


def _attributes_table(rows: Sequence[Mapping[str, Any]]) -> str:
    from ...core.attributes import ATTRIBUTES

    found: list[dict[str, Any]] = []
    for row in rows:
        for one in row.get("attributes", ()):
            line = {"method": row["method"], **one, **one["changes"]}
            if "attribute" in one:
                line["change"] = ATTRIBUTES[one["attribute"]].change_words(one["change"])
                line["attribute"] = ATTRIBUTES[one["attribute"]].label
            found.append(line)
    return _columns(found, (_COLUMNS[0], *_ATTRIBUTE_COLUMNS)) if found else ""


def _columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]) -> str:
    """Aligned columns; those that no row has a value for are left out."""
    used = [column for column in columns if any(column[0] in row for row in rows)]
    cells = [[head for _, head, _ in used]]
    cells += [[form.format(row[key]) if key in row else "-" for key, _, form in used] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(used))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def _samples_table(values: Mapping[str, Any]) -> str:
    rows = []
    kinds = dict.fromkeys([*values.get("frechet", {}), *values.get("nearest_distance", {})])
    for kind in kinds:
        row: dict[str, Any] = {"method": kind}
        if kind in values.get("frechet", {}):
            row["frechet"] = values["frechet"][kind]
        if kind in values.get("nearest_distance", {}):
            row |= values["nearest_distance"][kind]
        rows.append(row)
    columns = (
        ("method", "pictures", "{}"), ("frechet", "Frechet", "{:.4g}"), ("min", "nearest, min", "{:.4f}"),
        ("median", "nearest, median", "{:.4f}"),
    )  # fmt: skip
    return "\n\n".join(
        part for part in (f"{values['count']} random faces", _columns(rows, columns) if rows else "") if part
    )


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """Counts images where someone is watching; log lines otherwise."""
    from tqdm import tqdm

    if not sys.stderr.isatty():
        yield lambda method, done: logger.info("%s: %d more image(s)", method, done)
        return
    with tqdm(unit="image", leave=False) as bar:

        def show(method: str, done: int) -> None:
            bar.set_description_str(method)
            bar.update(done)

        yield show
