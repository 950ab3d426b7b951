"""Direction files: everything published for StyleGAN2 editing, and our own safetensors.

Read by content, never by extension, and without executing anything: InterFaceGAN normals (omertov/encoder4editing,
danielroich/PTI, genforce/interfacegan), GANSpace components (harskish/ganspace `.npz`, encoder4editing `ganspace_pca`),
SeFa factors (rosinality `closed_form_factorization.py`), ready-scaled W+ offsets (adobe-research/sam_inversion, SAMM,
GANSpace steerability) and normals of the flattened W+ (ControlGenAI/StyleFeatureEditor).
Published strengths keep their meaning (unit 1) except where a note below says otherwise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .direction_reading import StoredFile, read_direction_file
from .editing import Coordinate, Direction, LayerRange
from .errors import CorruptFileError, GANInversionError, InvalidInputError
from .files import replacing

logger = logging.getLogger(__name__)

FORMAT = "gan-inversion/directions"
FORMAT_VERSION = 1

_W_DIM = 512  # of every published direction; divides a flattened W+ normal into rows
_ROW_COUNTS = range(4, 20, 2)  # num_ws of StyleGAN2 from 8 to 1024 px
_NORMAL_LIMITS = (-5.0, 5.0)  # unit normals: the range of encoder4editing's notebooks
_OFFSET_LIMITS = (-3.0, 3.0)  # ready-scaled offsets: sam_inversion draws 0, 1, 2 and 3 times
_PCA_LIMITS = (-3.0, 3.0)  # standard deviations
_NAMED_LIMITS = (-1.5, 1.5)  # times the published strength
_PCA_KEYS = (("comp", "mean", "std"), ("lat_comp", "lat_mean", "lat_stdev"))  # encoder4editing, GANSpace
_EXPECTED = (
    "Expected [1, w_dim] (W), [num_ws, w_dim] or [1, num_ws, w_dim] (W+), [1, num_ws * 512] (flattened W+), "
    "a PCA with comp / mean / std, a SeFa file with eigvec, or a safetensors file written by save_direction."
)


@dataclass(frozen=True)
class NamedEdit:
    """A published use of one principal component."""

    component: int
    layers: LayerRange
    strength: float  # signed, in standard deviations: a natural step


# Component indices and strengths of encoder4editing `editings/latent_editor.py` and of the lists in use after it.
NAMED_PCA_EDITS: Mapping[str, Mapping[str, NamedEdit]] = {
    "ffhq": {
        "eye_openness": NamedEdit(54, (7, 8), 20.0),
        "smile": NamedEdit(46, (4, 5), -20.0),
        "trimmed_beard": NamedEdit(58, (7, 9), 20.0),
        "white_hair": NamedEdit(57, (7, 10), -24.0),
        "lipstick": NamedEdit(34, (10, 11), 20.0),
        "pose": NamedEdit(1, (0, 18), 0.5),
        "gender": NamedEdit(0, (0, 18), -1.5),
        "glasses": NamedEdit(12, (0, 4), 10.0),
        "age": NamedEdit(20, (6, 7), 8.0),
    },
    "cars": {
        "viewpoint": NamedEdit(0, (0, 5), 2.0),
        "cube": NamedEdit(16, (3, 6), 25.0),
        "color": NamedEdit(22, (9, 11), -8.0),
        "grass": NamedEdit(41, (9, 11), -18.0),
    },
}


@dataclass(frozen=True)
class _Known:
    """What is known of a published file beyond its numbers."""

    limits: tuple[float, float] = _NORMAL_LIMITS
    description: str = ""
    domain: str | None = None


# sha256 of the values as little-endian float32. Limits: 3 standard deviations of FFHQ w along the normal (from
# ffhq_pca.pt: age 1.53, smile 0.83, yaw 2.27), at most the 5 of the published sliders.
_YAW = _Known(description="InterFaceGAN yaw (head turn), StyleGAN2 FFHQ config-f.")
_KNOWN: Mapping[str, _Known] = {
    "8cfe162abbf3de5b596f5663555e903e42d87d54fb1a22fa0ea43f2588d4c7a7": _Known(
        (-4.5, 4.5), "InterFaceGAN age, StyleGAN2 FFHQ config-f."
    ),
    "51221e0df0a088ef0dc1a905c87dc0071a69caa558eea1a6855b11b68d598c66": _Known(
        (-2.5, 2.5), "InterFaceGAN smile, StyleGAN2 FFHQ config-f."
    ),
    "8cebaa2d3d95eb580724b68ed4b12cadf9be50c33034df6e0094549f3dd7a1bb": _YAW,
    "146fc0e9d40392c8b48f8c8819cd80b3ee985ea2ac876f23ea63e9953b00a11d": _YAW,
    "27329f3ddf9324d26a1020db962b2886c2bf7c0d00574cbd3c624db2793122ec": _Known(domain="ffhq"),
    "0a414b5e9735bbfb479c4b1c6dd86b11e275395fe0e8586a82bbe2f4226e5623": _Known(domain="cars"),
}
_STYLEGAN1 = "Stored as float64, as the InterFaceGAN boundaries of StyleGAN1 and PGGAN are: no use for StyleGAN2."
_GLASSES_ADD = "01eba82ef063c2c8d46d1d7b595714b4ada4a6eed9ebf9a21ebbc1b43ecfbd30"


def load_direction(
    path: str | Path,
    *,
    name: str | None = None,
    component: int | str | None = None,
    layers: LayerRange | None = None,
    unit: float | None = None,
    limits: tuple[float, float] | None = None,
    absolute: bool = False,
) -> Direction:
    """Reads one direction from a file of any supported format.

    Args:
        path: the file.
        name: what to call it; None takes the name in the file, or the file's own.
        component: which one of a file that holds several: an index, a name in the file, or a name of `NAMED_PCA_EDITS`
            where the PCA is a known one.
        layers: half-open row range; None is the one the direction was made for.
        unit, limits: replace the file's or the format's own (see `Direction`).
        absolute: of a PCA, strength is the coordinate to reach, in standard deviations, and not a step from where the
            photograph is (encoder4editing applies its GANSpace edits so).

    Raises:
        ModelNotFoundError: no such file.
        InvalidInputError: a readable file that holds no such direction.
        CorruptFileError: truncated, empty, a web page, an LFS pointer, or an unknown format.
        UnsafeFileError: the file wants to run code.
    """
    path = Path(path)
    found = _directions_of(path, absolute)
    direction = _pick(path, found, component, absolute)
    changes: dict[str, Any] = {"name": name, "layers": layers, "unit": unit, "limits": limits}
    changes = {key: value for key, value in changes.items() if value is not None}
    return dataclasses.replace(direction, **changes)


def list_directions(path: str | Path, *, absolute: bool = False) -> list[Direction]:
    """All directions of a file, or of all files below a folder (files that hold none are skipped with a warning).

    Raises:
        As `load_direction`, for a single file.
    """
    path = Path(path)
    if not path.is_dir():
        return _directions_of(path, absolute)
    found: list[Direction] = []
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            found += _directions_of(file, absolute)
        except GANInversionError as error:
            logger.warning("Skipped while listing directions: %s", error)
    return found


def named_pca_directions(path: str | Path, domain: str | None = None, *, absolute: bool = False) -> list[Direction]:
    """The known edits of a GANSpace PCA, with their layer ranges; strength 1 is the published step, sign included.

    Args:
        path: a PCA file (`.pt` of encoder4editing or `.npz` of GANSpace).
        domain: a key of `NAMED_PCA_EDITS`; None recognises encoder4editing's own files by content.
        absolute: as in `load_direction`; strength 1 then is the published coordinate.

    Raises:
        InvalidInputError: not a PCA, an unknown domain, or too few components. Reading errors as `load_direction`.
    """
    path = Path(path)
    pca = _pca_of(path, read_direction_file(path).content)
    if pca is None:
        raise InvalidInputError(f"{path} is not a PCA: named edits need comp, mean and std. Give a GANSpace file.")
    domain = domain or _known(pca.comp).domain
    if domain is None or domain not in NAMED_PCA_EDITS:
        raise InvalidInputError(
            f"{path}: no named edits for the domain {domain!r}; known are {', '.join(NAMED_PCA_EDITS)}. "
            "Give domain=..., or choose a component by its index."
        )
    edits = NAMED_PCA_EDITS[domain]
    last = max(edit.component for edit in edits.values())
    if last >= len(pca.comp):
        raise InvalidInputError(
            f"{path} holds {len(pca.comp)} components, the named edits of {domain!r} use number {last}. "
            "Give the PCA they were found on (80 components)."
        )
    return [
        pca.direction(
            edit.component,
            name,
            absolute,
            step=edit.strength,
            layers=edit.layers,
            limits=_NAMED_LIMITS,
            description=f"GANSpace component {edit.component} ({domain}), published strength {edit.strength:g}.",
        )
        for name, edit in edits.items()
    ]


def save_direction(
    path: str | Path, directions: Direction | Sequence[Direction], *, licence: str = "", note: str = ""
) -> Path:
    """Writes one or several directions to one safetensors file, complete with units, limits and layer ranges.

    Args:
        path: written only when complete.
        directions: their names must differ.
        licence: of the file, for people to read (see `read_note`).
        note: how it was made, for people to read.

    Raises:
        InvalidInputError: no directions, two of one name, or a path that cannot be a file.
    """
    from safetensors.torch import save_file

    items = [directions] if isinstance(directions, Direction) else list(directions)
    names = [direction.name for direction in items]
    if not items or len(set(names)) != len(names):
        raise InvalidInputError(f"Directions named {names}: expected at least one, each with a name of its own.")
    tensors: dict[str, Tensor] = {}
    described = []
    for index, direction in enumerate(items):
        if direction.offset is not None:
            tensors[f"{index}.offset"] = direction.offset
        if direction.coordinate is not None:
            tensors[f"{index}.mean"] = direction.coordinate.mean
        tensors.update({f"{index}.style.{layer}": value for layer, value in direction.style.items()})
        plain = {key: getattr(direction, key) for key in _PLAIN_FIELDS}
        described.append({**plain, "std": direction.coordinate.std if direction.coordinate else None})
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "licence": licence,
        "note": note,
        "directions": json.dumps(described),
    }
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(own, temporary, metadata=metadata)
    return Path(path)


def read_note(path: str | Path) -> dict[str, str]:
    """The "licence" and "note" of a file written by `save_direction`; empty for other formats."""
    metadata = read_direction_file(Path(path)).metadata
    return {key: metadata[key] for key in ("licence", "note") if metadata.get(key)}


_PLAIN_FIELDS = ("name", "unit", "limits", "layers", "generator_id", "description")


@dataclass(frozen=True)
class _Pca:
    """Principal components of w."""

    comp: Tensor  # [K, w_dim], unit rows
    mean: Tensor  # [w_dim]
    std: Tensor  # [K]

    def direction(
        self,
        index: int,
        name: str,
        absolute: bool,
        step: float = 1.0,
        layers: LayerRange | None = None,
        limits: tuple[float, float] = _PCA_LIMITS,
        description: str = "",
    ) -> Direction:
        """Component `index`; strength 1 is `step` standard deviations."""
        comp, std = self.comp[index : index + 1], float(self.std[index])
        if absolute:
            # The coordinate counts standard deviations, so the offset must be one of them long.
            place = Coordinate(self.mean, std)
            return Direction(
                name, comp * std, unit=step, limits=limits, layers=layers, coordinate=place, description=description
            )
        return Direction(name, comp, unit=step * std, limits=limits, layers=layers, description=description)


def _directions_of(path: Path, absolute: bool) -> list[Direction]:
    stored = read_direction_file(path)
    if stored.container == "safetensors":
        return _own(path, stored)
    content = stored.content
    pca = _pca_of(path, content)
    if pca is not None:
        names = [f"{path.stem}:{index}" for index in range(len(pca.comp))]
        return [pca.direction(index, name, absolute) for index, name in enumerate(names)]
    if absolute:
        raise InvalidInputError(f"{path}: absolute strengths need a PCA with mean and std. Use absolute=False.")
    if isinstance(content, Mapping) and isinstance(content.get("eigvec"), Tensor):
        return _sefa(path, content["eigvec"])
    if isinstance(content, Tensor):
        return [_single(path, content)]
    raise InvalidInputError(f"{path} {_description_of(content)}. {_EXPECTED}")


def _description_of(content: Any) -> str:
    """Finishes the sentence "FILE ..." for content that is no direction."""
    if isinstance(content, Mapping):
        names = [str(name) for name in content]
        if {"mean_00", "std_00"} <= set(names):
            return "holds the mean and deviation of style-space channels, which is a scale and not a direction"
        shown = ", ".join([*names[:6], *(["..."] if len(names) > 6 else [])])
        return f"holds {shown or 'nothing'}, not a direction"
    if isinstance(content, (list, tuple)):
        return f"holds a {type(content).__name__} of {len(content)}, not a direction"
    return f"holds a {type(content).__name__}, not a direction"


def _pick(path: Path, found: list[Direction], component: int | str | None, absolute: bool) -> Direction:
    names = [direction.name for direction in found]
    if isinstance(component, str):
        if component in names:
            return found[names.index(component)]
        if len(found) > 1:
            edits = _named_or_none(path, absolute)
            if component in edits:
                return edits[component]
            names += list(edits)
        shown = ", ".join([*names[:3], "...", *names[-9:]] if len(names) > 12 else names)
        raise InvalidInputError(f"{path} holds no direction {component!r}. It holds {shown}.")
    if component is None:
        if len(found) == 1:
            return found[0]
        raise InvalidInputError(
            f"{path} holds {len(found)} directions. Choose one by index (component=0 to {len(found) - 1}) or by name."
        )
    if not 0 <= component < len(found):
        raise InvalidInputError(
            f"{path} holds {len(found)} direction(s), not number {component}. Choose component=0 to {len(found) - 1}."
        )
    return found[component]


def _named_or_none(path: Path, absolute: bool) -> dict[str, Direction]:
    try:
        return {direction.name: direction for direction in named_pca_directions(path, absolute=absolute)}
    except InvalidInputError:
        return {}


def _pca_of(path: Path, content: Any) -> _Pca | None:
    if not isinstance(content, Mapping):
        return None
    keys = next((keys for keys in _PCA_KEYS if keys[0] in content), None)
    if keys is None:
        return None
    parts = [part for part in map(content.get, keys) if isinstance(part, Tensor) and part.is_floating_point()]
    if len(parts) < len(keys):
        raise InvalidInputError(f"{path} has {keys[0]} without {keys[1]} and {keys[2]}: an incomplete PCA. {_EXPECTED}")
    comp, mean, std = (part.float() for part in parts)
    std = std.flatten()
    width = comp.shape[-1] if comp.ndim else 0
    if comp.ndim not in (2, 3) or comp.numel() != len(std) * width or mean.numel() != width or not width:
        raise InvalidInputError(
            f"{path}: a PCA with {keys[0]} {list(comp.shape)}, {keys[1]} {list(mean.shape)} and {keys[2]} "
            f"{list(std.shape)}: expected [K, 1, w_dim], [1, w_dim] and [K]. Only components of w can be used."
        )
    for part in (comp, mean, std):
        _require_finite(path, part)
    return _Pca(comp.reshape(-1, width), mean.reshape(width), std)


def _sefa(path: Path, eigvec: Tensor) -> list[Direction]:
    if eigvec.ndim != 2 or eigvec.shape[0] < eigvec.shape[1] or not eigvec.is_floating_point():
        raise InvalidInputError(
            f"{path}: eigvec of shape {list(eigvec.shape)}: expected [w_dim, K], one direction per column."
        )
    _require_finite(path, eigvec)
    columns = eigvec.float().T.contiguous()
    note = "SeFa factor; a typical strength is 5."
    return [
        Direction(f"{path.stem}:{index}", row[None], limits=_NORMAL_LIMITS, description=note)
        for index, row in enumerate(columns)
    ]


def _single(path: Path, stored: Tensor) -> Direction:
    rows, flattened = _as_rows(path, stored)
    _require_finite(path, rows)
    norms = rows.norm(dim=1)
    if not norms.any():
        raise InvalidInputError(f"{path} holds only zeros: no direction. {_EXPECTED}")
    used = norms.nonzero().flatten()
    first, end = int(used[0]), int(used[-1]) + 1
    direction = Direction(
        path.stem,
        rows,
        # A normal of the flattened W+ spreads its unit length over all rows: this makes it as strong as one of W.
        unit=len(rows) ** 0.5 if flattened else 1.0,
        limits=_NORMAL_LIMITS if flattened or torch.allclose(norms, torch.ones(1), atol=1e-3) else _OFFSET_LIMITS,
        layers=(first, end) if (first, end) != (0, len(rows)) else None,
        description="Normal of the flattened W+." if flattened else _STYLEGAN1 if stored.dtype is torch.float64 else "",
    )
    digest = _digest(rows)
    if digest in _KNOWN:
        known = _KNOWN[digest]
        return dataclasses.replace(direction, limits=known.limits, description=known.description)
    if digest == _GLASSES_ADD and "remove" in path.stem:
        logger.warning("%s holds the numbers of csc_glasses_add.npy (its publisher's error): used negated.", path)
        return dataclasses.replace(direction, unit=-1.0, description="csc_glasses_add negated: the file itself adds.")
    return direction


def _as_rows(path: Path, stored: Tensor) -> tuple[Tensor, bool]:
    """Any stored layout -> ([1 or num_ws, w_dim], whether it was one flattened row)."""
    if stored.is_floating_point():
        shape = tuple(stored.shape)
        rows = stored.float()
        if len(shape) == 3 and shape[0] == 1:
            rows = rows[0]
        elif len(shape) == 1:
            rows = rows[None]
        if rows.ndim == 2 and rows.shape[1] > 0:
            if len(rows) == 1 and rows.shape[1] % _W_DIM == 0 and rows.shape[1] // _W_DIM in _ROW_COUNTS:
                return rows.reshape(-1, _W_DIM).contiguous(), True
            if len(rows) == 1 or len(rows) in _ROW_COUNTS:
                return rows.contiguous(), False
        if len(shape) == 3 and shape[1] in _ROW_COUNTS:
            raise InvalidInputError(f"{path} holds {shape[0]} codes {list(shape[1:])}, not a direction. {_EXPECTED}")
    raise InvalidInputError(f"{path} holds a tensor of shape {list(stored.shape)} and type {stored.dtype}. {_EXPECTED}")


def _own(path: Path, stored: StoredFile) -> list[Direction]:
    metadata, tensors = stored.metadata, stored.content
    if metadata.get("format") != FORMAT:
        raise InvalidInputError(
            f"{path}: a safetensors file of format {metadata.get('format')!r} with {len(tensors)} tensor(s), not saved "
            f"directions (format {FORMAT!r}). {_EXPECTED}"
        )
    try:
        if int(metadata["format_version"]) > FORMAT_VERSION:
            raise CorruptFileError(f"{path}: written by a newer version of this package. Update gan-inversion.")
        return [_own_direction(index, item, tensors) for index, item in enumerate(json.loads(metadata["directions"]))]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, GANInversionError):
            raise
        raise CorruptFileError(f"{path}: saved directions with damaged metadata ({error!r}).") from error


def _own_direction(index: int, item: dict[str, Any], tensors: Mapping[str, Tensor]) -> Direction:
    prefix = f"{index}.style."
    mean = tensors.get(f"{index}.mean")
    layers = item["layers"]
    return Direction(
        str(item["name"]),
        tensors.get(f"{index}.offset"),
        {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)},
        unit=float(item["unit"]),
        limits=(float(item["limits"][0]), float(item["limits"][1])),
        layers=None if layers is None else (int(layers[0]), int(layers[1])),
        coordinate=None if mean is None else Coordinate(mean, float(item["std"])),
        generator_id=item["generator_id"],
        description=str(item["description"]),
    )


def _known(tensor: Tensor) -> _Known:
    return _KNOWN.get(_digest(tensor), _Known())


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().astype("<f4").tobytes()).hexdigest()


def _require_finite(path: Path, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise CorruptFileError(f"{path} contains NaN or infinity: expected finite numbers. Download or make it again.")
