"""The workflow templates that come with the pack.

`python -m gan_inversion.nodes.headless.templates` writes every template into workflows/ and workflows/api/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .template_drawing import Group, Link, Shown, Step, Template, to_api, to_ui

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


def write_all(folder: Path = WORKFLOWS) -> list[Path]:
    """Writes every template in both formats and returns the paths."""
    written = []
    for template in TEMPLATES:
        for path, data in (
            (folder / f"{template.name}.json", to_ui(template)),
            (folder / "api" / f"{template.name}.json", to_api(template)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
            written.append(path)
    return written


_EDIT_NOTE = """\
## Edit a portrait

A photograph goes in, the edited photograph comes out at its own size.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run.
3. Move **strength** in *Apply Direction* and run again: only what follows the slider runs, neither the face
   detector nor the encoder.

The three models are small and come with the pack, so nothing is downloaded. For faces of other people and of higher
quality choose an FFHQ generator, a matching encoder and one of its directions in the three loaders.

*Paste Back* adds only what the edit changed, so the photograph keeps its own detail. Disconnect its *unedited* input to
paste the generator's pixels themselves."""

_SWEEP_NOTE = """\
## Direction sweep

One photograph at several strengths of a direction: the way to see what a direction does and how far it can go.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run: *grid* is one labelled picture, *frames* are the single pictures, in order, for an animation.

The encoder runs once. Connect a second direction to *second_direction* for a two-dimensional grid."""

_DHR_NOTE = """\
## Keep what the generator cannot draw

An inversion is the photograph as the generator can draw it: hair, clothes and background become others. *DHR Refine* brings
them back, so that the edit happens on the person who was photographed.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. The refinement takes a quarter of a minute on a CPU with the models that come with the pack.
3. Compare the two edits on the right: *Plain edit* is made without refinement, *Refined edit* with it.
4. Move **strength** and run again: DHR does not run again.

What to look at: *Where it cannot draw* tints that part red, *Mask* is the same part in white. An edit changes nothing there,
so a box over mouth and cheeks, which lie at the same place in every aligned photograph, is subtracted (**merge**). For an edit
that moves other parts move the box, or paint a mask: save *Aligned photograph*, open it in a second *Load Image*, paint in
its mask editor, and connect its mask. A higher **threshold** makes the red part smaller.

For more likeness raise **steps**; with an FFHQ generator use a GPU. *bisenet-face-parsing* as **face_parser** knows the
parts of a face and finds better masks (53 MB, non-commercial)."""

_PTI_STEPS, _NEAR_PERFECT_STEPS = 150, 100  # a fraction of the usual ones: templates must run on a slow CPU

_PTI_NOTE = f"""\
## Teach the generator a photograph (PTI)

*Tune Generator* changes the generator's weights, for this photograph alone, until it draws it from the code that the encoder
found. The code stays where edits work.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. The tuning takes half a minute on a CPU with the models that come with the pack.
3. Compare the two edits on the right: *Plain edit* is made without tuning, *Tuned edit* with it.
4. Move **strength** and run again: the tuning does not run again.

What to look at: whether it is the same person in *Tuned inversion*, and whether the smile is as good as in *Plain edit*.
Tuning stops here after {_PTI_STEPS} steps; the method's usual 350 come closer. If edits look broken, lower **steps** or switch
**locality** on."""

_NEAR_PERFECT_NOTE = f"""\
## Teach the generator a photograph (near-perfect inversion)

Like PTI, but the generator is tuned against its discriminator, which looks at the photograph and at random faces in turn:
that keeps the tuned generator a generator of faces.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. The tuning takes up to a minute on a CPU with the models that come with the pack.
3. Compare the two edits on the right: *Plain edit* is made without tuning, *Tuned edit* with it.
4. Move **strength** and run again: the tuning does not run again.

What to look at: whether it is the same person in *Tuned inversion*, down to clothes and background, and whether eyes and
teeth of *Tuned edit* are as clean as in *Plain edit*. Tuning stops here after {_NEAR_PERFECT_STEPS} steps, while hair is still
soft; 300 come closer.

The method needs the generator's own discriminator: it comes with the pack for the bundled generator, and NVIDIA's .pkl files
hold it."""

_CANNOT_NOTE = """\
## What can the generator not draw?

Three answers side by side, each of which is a mask that other nodes take.

1. **Load Image**: choose a photograph that shows a face from the front, best with a hat, a hand or glasses.
2. Press Run. With the models that come with the pack it takes under a minute on a CPU.

- *SAM* predicts how well each part can be inverted in each latent space. Blue parts can be edited (W+), the others need
  features and stay more like the photograph the warmer their colour is. A lower **tau** keeps more.
- *SAMM* compares the generator's features with the photograph's. Red parts stay pixels of the photograph.
- *DHR* compares the photograph with a coarse inversion, superpixel by superpixel.

What to look at: they agree on what is foreign (a hat) and differ on hair and clothes. Any of the masks can be painted over:
save *Aligned photograph*, paint on it in a second *Load Image*, and connect its mask to **mask**; **merge** says what it does."""

_SAMM_NOTE = """\
## Edit behind a hat or a hand (SAMM and Blend)

*SAMM Align* finds what the generator cannot draw, keeps it as pixels of the photograph, and moves the generator's features
so that both fit together.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run.
3. Compare the two edits on the right: *Plain edit* is made without alignment, *Aligned edit* with it.
4. Move **strength** and run again: SAMM does not run again.

What to look at: red parts of *Mask and shifts* are kept; arrows show where features move. *Blend* sets the edited face into the
aligned photograph at the photograph's own sharpness, with the same mask: feather and grow it there, or merge a painted one.

If an edited picture shows ghosts of the photograph, raise **mask_threshold**. The network that comes with the pack belongs to
the bundled generator; for others (FFHQ) **method** *automatic* finds masks and shifts for each photograph, without a network."""

_MULTILAYER_NOTE = """\
## Each region in its own latent space (SAM)

*Predict Invertibility* finds where the codes suffice (W+). *Multilayer Invert* draws the other regions by features at the
layer that each of them needs; an edit acts on a region only behind its layer.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. The inversion takes a quarter of a minute on a CPU with the models that come with the pack.
3. Compare the two edits on the right: *Plain edit* is made from the encoder's code alone, *Multilayer edit* with features.
4. Move **strength** and run again: neither the prediction nor the inversion runs again.

What to look at: hair, clothes and background come back in *Multilayer edit*, and the smile is in both. A lower **tau** gives
more of the picture to features: nearer to the photograph, less to edit. **method** *encoder (one pass)* takes no time and is
softer; *optimise* with more **steps** comes closer."""

_REGANIE_NOTE = """\
## Give an edit the photograph's own look back (ReGANIE)

*ReGANIE Rectify* looks at what an inversion misses, and redraws every edit of it with that. It is one pass of a network: no
optimisation. Before it, *Project* brings the encoder's code a little nearer to the photograph in a few steps.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run.
3. Compare the two edits on the right: *Plain edit* is made from the encoder's code, *Rectified edit* with both.
4. Move **strength** in *Apply Direction* and run again: nothing is optimised again, the network runs in *Render*.

What to look at: hair, clothes, background and the person come back in *Rectified edit*, and the smile is in both. Ghosts
of the photograph show where an edit moves edges far: lower **strength** of *ReGANIE Rectify*, or paint a **mask**.

Connect *Encode* straight to *ReGANIE Rectify* to leave *Project* out: then all takes a moment, and where hair or clothes are
far from what the encoder drew, its outlines show through.

The network belongs to the bundled generator. For another one, `gan-inversion train reganie` trains one; the method
*residual transfer* needs none and is the baseline to compare with."""

_NEARER_STEPS = 30
_COMBINED_STEPS = {"project": 40, "tune": 50}

_COMBINE_NOTE = f"""\
## Three methods, each for what it does best

An inversion is a code and a stack of changes, so methods combine: each node adds its own to what it is given.

1. *Project (W+)* moves the encoder's code nearer to the photograph: the light, the colours, the head's shape.
2. *SAMM Align* finds what the generator cannot draw, here hair and clothes, and keeps it as pixels of the photograph.
3. *Tune Generator (near-perfect)* learns the rest, which is the face of this person. It wastes nothing on the hair.
4. *Paste Back* brings the face into the photograph, and leaves alone what SAMM has found.

Choose a photograph in **Load Image** and press Run; it takes up to a minute on a CPU. Then move both **strength** sliders:
none of the three methods runs again.

What to look at: *Encoder alone* and *All three* are the same edit, at the same place in the photograph. The first is somebody
else. Take a method away to see what it does: select its node, press Ctrl+B, and run.

The order matters. Tuning after SAMM sees only what SAMM left. Steps are few here ({_COMBINED_STEPS["project"]} and \
{_COMBINED_STEPS["tune"]}), so that a CPU can do it; three times as many come closer, and edit less freely."""

_VIDEO_NOTE = """\
## Edit a video

Every frame is a photograph: its face is found, encoded, edited with one slider, and pasted back.

1. **Load Video**: choose a short video that shows a face from the front. All frames are held in main memory, before and
   after: 10 seconds of 720p take some 10 GB. Cut longer ones, or make them smaller, first.
2. Press Run. With the models that come with the pack a CPU takes about a second for each frame, most of it for finding the
   face. Choose *yunet* as **detector** once (0.2 MB): it finds more faces.
3. Move **strength** in *Apply Direction* and run again: only what follows the slider runs.

What to look at: *Face report* has a line for each frame. A frame without a face says *passed through*, and is in the new
video as it was. *Edited faces* shows the frames one by one. *Paste Back* adds only what the edit changed, which keeps the
frames' own detail and keeps them from flickering.

Where a face jumps to another person, choose *left*, *right* or *centre* in *Align Face*. Sound is kept by ComfyUI;
`gan-inversion run` leaves it out."""

_PROJECT_STEPS = 200

_PROJECT_NOTE = f"""\
## Invert without an encoder

*Project* finds the code by optimisation: it works with every generator, also with those that nobody has made an encoder for.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. The projection takes half a minute on a CPU with the models that come with the pack.
3. Compare the two edits on the right: *Encoder's* takes one pass, *Projected* {_PROJECT_STEPS} steps.
4. Move **strength** and run again: neither runs again.

What to look at: the projected code is nearer to the photograph, in hair, light and clothes; *Measured* says by how much. The
encoder's edit is the cleaner one: codes far from those that the generator was trained with bend under an edit. Connect
*Encode* to **start** for both: the likeness of the one in a third of the steps.

**space** *W* has one code for all layers: less like the photograph, safer to edit. More **steps** come closer; with an FFHQ
generator use a GPU, 200 to 500 steps, and **distance** *lpips-vgg*."""

_DISCOVER_NOTE = """\
## Find out what a generator can change

*Discover Directions* needs no labels. *PCA* takes the directions in which codes of random pictures differ most, *SeFa* those
to which the generator's weights react most. What they mean, you see: *Direction Sweep* draws a photograph at several
strengths of two of them, and then you give them a **name**.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. With the models that come with the pack it takes half a minute on a CPU.
3. Change **index** in one of the two *Discover Directions* and run again. The first ten usually mean something.

What to look at: columns are the PCA direction, here fuller and darker hair; rows are the SeFa direction, here a longer or a
wider face. Strength 1 is one standard deviation of this generator's codes. A direction that changes too much at once becomes
purer with fewer layers: **first_layer** and **last_layer** choose them, 0 to 3 pose and shape, the last ones colours.

A few steps of *Project* bring the encoder's code nearer to the photograph first."""

_MIX_NOTE = """\
## Random faces, and styles mixed between them

No photograph is needed: a generator draws as many people as you like, none of whom exists.

1. Press Run.
2. Change **seed** in one of the two *Sample* nodes and run again; **psi** makes faces more alike (0.5) or more varied (1).

What to look at: *Faces* are four random people, *The style* is a fifth. *Mix Styles* gives each of the four some layers of the
fifth: the first ones carry the shape of head and face (*Its shape*), the last ones the colours of skin, hair and background
(*Its colours*). All layers at **amount** 0.5 are a morph (*Half way*).

Everything here is an inversion like that of a photograph: it can be edited, refined, saved, and mixed with photographs from
*Encode*."""

_LOADERS = {
    1: Step("LoadImage", 0, {"image": "portrait.png"}),
    2: Step("GANInversionLoadStyleGAN", 0, {"model": "portraits"}),
    3: Step("GANInversionLoadEncoder", 0, {"model": "portraits-e4e"}),
    4: Step("GANInversionAlignFace", 1, links={"image": (1, 0), "generator": (2, 0)}),
    5: Step("PreviewAny", 1, links={"source": (4, 3)}, title="Face report"),
    6: Step(
        "GANInversionEncode", 2, links={"image": (4, 0), "encoder": (3, 0), "generator": (2, 0), "crop": (4, 1)}
    ),
    7: Step("GANInversionLoadDirection", 3, {"direction": "portraits-smile"}),
}  # fmt: skip

_REFINED = {
    **_LOADERS,
    7: Step("GANInversionLoadDirection", 5, {"direction": "portraits-smile"}),
    8: Step("PreviewImage", 2, links={"images": (4, 0)}, title="Aligned photograph"),
}
_REFINED_GROUPS = (Group("Photograph and models", (1, 2, 3)), Group("Find the face and invert it", (4, 5, 6, 8)))
_COMPARED_GROUPS = (  # of what `_compared` draws from node 13 on
    Group("Edit: move both sliders", (7, 13, 14)),
    Group("Draw both", (15, 16)),
    Group("Compare", (17, 18)),
)
_STRENGTH = 1.0


def _compared(
    refined: Link, word: str, *, prefix: str, first: int, strength: float = _STRENGTH, plain: str = "Plain"
) -> dict[int, Step]:
    """The same edit of the plain and of the refined inversion, from node `first` on: sliders, renders, pictures."""
    slider, render, picture = first, first + 2, first + 4
    return {
        slider: Step(
            "GANInversionApplyDirection", 5, {"strength": strength}, {"inversion": (6, 0), "direction": (7, 0)},
            title=f"Edit the {plain.lower()} inversion",
        ),
        slider + 1: Step(
            "GANInversionApplyDirection", 5, {"strength": strength}, {"inversion": refined, "direction": (7, 0)},
            title=f"Edit the {word.lower()} inversion",
        ),
        render: Step("GANInversionRender", 6, links={"inversion": (slider, 0)}),
        render + 1: Step("GANInversionRender", 6, links={"inversion": (slider + 1, 0)}),
        picture: Step("PreviewImage", 7, links={"images": (render, 0)}, title=f"{plain} edit"),
        picture + 1: Step(
            "SaveImage", 7, {"filename_prefix": prefix}, {"images": (render + 1, 0)}, title=f"{word} edit"
        ),
    }  # fmt: skip


def _tuning(name: str, note: str, values: Mapping[str, Any]) -> Template:
    return Template(
        name=name,
        note=note,
        steps={
            **_REFINED,
            9: Step("GANInversionTuneGenerator", 3, values, {"inversion": (6, 0)}),
            10: Step("PreviewAny", 3, links={"source": (9, 2)}, title="Tuning report"),
            11: Step("PreviewImage", 4, links={"images": (6, 1)}, title="Plain inversion"),
            12: Step("PreviewImage", 4, links={"images": (9, 1)}, title="Tuned inversion"),
            **_compared((9, 0), "Tuned", prefix=name, first=13),
        },
        groups=(
            *_REFINED_GROUPS,
            Group("Tune", (9, 10, 11, 12)),
            *_COMPARED_GROUPS,
        ),
        thumbnail=(
            Shown(8, "photograph"),
            Shown(17, "plain edit"),
            Shown(12, "tuned"),
            Shown(18, "tuned edit"),
        ),
        columns=2,
    )


_REGANIE = Template(
    name="reganie",
    note=_REGANIE_NOTE,
    steps={
        **_REFINED,
        19: Step(
            "GANInversionProject", 3, {"steps": _NEARER_STEPS},
            {"image": (4, 0), "generator": (2, 0), "start": (6, 0), "crop": (4, 1)}, title="A few steps nearer (W+)",
        ),
        9: Step("GANInversionReGANIERectify", 4, links={"inversion": (19, 0)}),
        10: Step("PreviewAny", 4, links={"source": (9, 3)}, title="Rectification report"),
        11: Step("PreviewImage", 4, links={"images": (19, 1)}, title="Nearer inversion"),
        12: Step("PreviewImage", 4, links={"images": (9, 2)}, title="Rectified inversion"),
        **_compared((9, 0), "Rectified", prefix="reganie", first=13),
    },
    groups=(
        *_REFINED_GROUPS,
        Group("Come nearer, rectify", (19, 9, 10, 11, 12)),
        *_COMPARED_GROUPS,
    ),
    thumbnail=(
        Shown(8, "photograph"), Shown(17, "plain edit"), Shown(11, f"{_NEARER_STEPS} steps nearer"), Shown(18, "rectified edit"),
    ),
    columns=2,
)  # fmt: skip

_PASTED = {"region": "face"}
_SQUARE = (0.0, 0.0, 1.0, 16 / 17)  # a map without the legend below it
_LEFT = (0.0, 0.1, 0.497, 1.0)  # the first of two pictures, without the line above them
_HEAD = (0.24, 0.02, 0.64, 0.42)  # where the head is in the photograph of the thumbnails

_COMBINE = Template(
    name="combine_methods",
    note=_COMBINE_NOTE,
    steps={
        **_REFINED,
        9: Step(
            "GANInversionProject", 3, {"steps": _COMBINED_STEPS["project"]},
            {"image": (4, 0), "generator": (2, 0), "start": (6, 0), "crop": (4, 1)}, title="1. Project (W+)",
        ),
        10: Step("GANInversionSAMMAlign", 3, links={"inversion": (9, 0)}, title="2. SAMM Align"),
        11: Step(
            "GANInversionTuneGenerator", 3, {"method": "near-perfect", "steps": _COMBINED_STEPS["tune"]},
            {"inversion": (10, 0)}, title="3. Tune Generator",
        ),
        12: Step("PreviewImage", 4, links={"images": (9, 1)}, title="After 1: nearer"),
        13: Step("PreviewImage", 4, links={"images": (10, 1)}, title="After 2: hair and clothes"),
        14: Step("PreviewImage", 4, links={"images": (11, 1)}, title="After 3: the person"),
        15: Step("PreviewImage", 4, links={"images": (10, 4)}, title="What SAMM keeps"),
        16: Step(
            "GANInversionApplyDirection", 5, {"strength": -1.5}, {"inversion": (6, 0), "direction": (7, 0)},
            title="Edit the encoder's inversion",
        ),
        17: Step(
            "GANInversionApplyDirection", 5, {"strength": -1.5}, {"inversion": (11, 0), "direction": (7, 0)},
            title="Edit the combined inversion",
        ),
        18: Step("InvertMask", 5, links={"mask": (10, 2)}, title="All but what SAMM keeps"),
        19: Step("GANInversionRender", 6, links={"inversion": (16, 0)}),
        20: Step("GANInversionRender", 6, links={"inversion": (17, 0)}),
        21: Step(
            "GANInversionPasteBack", 6, _PASTED,
            {"photo": (1, 0), "edited": (19, 0), "crop": (4, 1), "mask": (18, 0)},
        ),
        22: Step(
            "GANInversionPasteBack", 6, _PASTED,
            {"photo": (1, 0), "edited": (20, 0), "crop": (4, 1), "mask": (18, 0)},
        ),
        23: Step("PreviewImage", 7, links={"images": (21, 0)}, title="Encoder alone"),
        24: Step("SaveImage", 7, {"filename_prefix": "combine_methods"}, {"images": (22, 0)}, title="All three"),
    },
    groups=(
        *_REFINED_GROUPS,
        Group("Three methods, one after another", (9, 10, 11, 12, 13, 14, 15)),
        Group("Edit: move both sliders", (7, 16, 17, 18)),
        Group("Draw and paste back", (19, 20, 21, 22)),
        Group("Compare", (23, 24)),
    ),
    thumbnail=(
        Shown(8, "photograph"), Shown(6, "encoder alone", slot=1), Shown(19, "less smile", slot=0),
        Shown(23, "less smile, pasted", part=_HEAD),
        Shown(12, "1. Project"), Shown(13, "2. SAMM Align"), Shown(14, "3. Tune"),
        Shown(24, "less smile, pasted", part=_HEAD),
    ),
    columns=4,
)  # fmt: skip

_VIDEO = Template(
    name="video_frames",
    note=_VIDEO_NOTE,
    steps={
        1: Step("LoadVideo", 0, {"file": "portrait.mp4"}),
        2: _LOADERS[2],
        3: _LOADERS[3],
        4: Step("GetVideoComponents", 1, links={"video": (1, 0)}),
        5: Step("GANInversionAlignFace", 1, links={"image": (4, 0), "generator": (2, 0)}),
        6: Step("PreviewAny", 1, links={"source": (5, 3)}, title="Face report: one line a frame"),
        7: Step(
            "GANInversionEncode", 2, links={"image": (5, 0), "encoder": (3, 0), "generator": (2, 0), "crop": (5, 1)}
        ),
        8: Step("PreviewImage", 2, links={"images": (5, 0)}, title="Aligned faces"),
        9: Step("GANInversionLoadDirection", 3, {"direction": "portraits-smile"}),
        10: Step("GANInversionApplyDirection", 3, {"strength": 1.5}, {"inversion": (7, 0), "direction": (9, 0)}),
        11: Step("GANInversionRender", 4, links={"inversion": (10, 0)}),
        12: Step(
            "GANInversionPasteBack", 4, {"region": "face"},
            {"photo": (4, 0), "edited": (11, 0), "crop": (5, 1), "unedited": (11, 1)},
        ),
        13: Step("CreateVideo", 5, links={"images": (12, 0), "fps": (4, 2), "audio": (4, 1)}),
        14: Step("SaveVideo", 5, {"filename_prefix": "video_frames"}, {"video": (13, 0)}),
        15: Step("PreviewImage", 5, links={"images": (11, 0)}, title="Edited faces"),
    },
    groups=(
        Group("Video and models", (1, 2, 3)),
        Group("Find the faces and invert them", (4, 5, 6, 7, 8)),
        Group("Edit: move the slider", (9, 10)),
        Group("Draw and paste back", (11, 12)),
        Group("The new video", (13, 14, 15)),
    ),
    thumbnail=(
        Shown(4, "frame 1", slot=0, index=0), Shown(4, "frame 3", slot=0, index=2),
        Shown(4, "frame 5", slot=0, index=4), Shown(4, "frame 7", slot=0, index=6),
        Shown(12, "more smile", slot=0, index=0), Shown(12, "more smile", slot=0, index=2),
        Shown(12, "more smile", slot=0, index=4), Shown(12, "more smile", slot=0, index=6),
    ),
    columns=4,
)  # fmt: skip

_PROJECT = Template(
    name="project",
    note=_PROJECT_NOTE,
    steps={
        **_REFINED,
        9: Step(
            "GANInversionProject", 3, {"steps": _PROJECT_STEPS}, {"image": (4, 0), "generator": (2, 0), "crop": (4, 1)},
        ),
        10: Step("PreviewImage", 4, links={"images": (6, 1)}, title="Encoder's inversion"),
        11: Step("PreviewImage", 4, links={"images": (9, 1)}, title="Projected inversion"),
        12: Step("GANInversionCompare", 3, links={"before": (4, 0), "after": (6, 1)}, title="Measure the encoder's"),
        19: Step("GANInversionCompare", 3, links={"before": (4, 0), "after": (9, 1)}, title="Measure the projected"),
        20: Step("PreviewAny", 4, links={"source": (12, 5)}, title="Measured: encoder"),
        21: Step("PreviewAny", 4, links={"source": (19, 5)}, title="Measured: projected"),
        **_compared((9, 0), "Projected", prefix="project", first=13, plain="Encoder's"),
    },
    groups=(
        *_REFINED_GROUPS,
        Group("Project and measure", (9, 10, 11, 12, 19, 20, 21)),
        *_COMPARED_GROUPS,
    ),
    thumbnail=(
        Shown(8, "photograph"), Shown(10, "encoder"), Shown(11, "projected (W+)"), Shown(18, "more smile"),
    ),
    columns=2,
)  # fmt: skip

_DISCOVER = Template(
    name="discover_directions",
    note=_DISCOVER_NOTE,
    steps={
        **{k: step for k, step in _LOADERS.items() if k != 7},
        7: Step(
            "GANInversionProject", 2, {"steps": 60},
            {"image": (4, 0), "generator": (2, 0), "start": (6, 0), "crop": (4, 1)},
        ),
        8: Step(
            "GANInversionDiscoverDirections", 3, {"method": "PCA", "index": 3, "name": "hair"}, {"generator": (2, 0)},
            title="Columns: PCA",
        ),
        9: Step(
            "GANInversionDiscoverDirections", 3, {"method": "SeFa", "index": 1, "name": "face"}, {"generator": (2, 0)},
            title="Rows: SeFa",
        ),
        10: Step("PreviewAny", 4, links={"source": (8, 1)}, title="About the PCA direction"),
        11: Step("PreviewAny", 4, links={"source": (9, 1)}, title="About the SeFa direction"),
        12: Step(
            "GANInversionDirectionSweep", 4, {"steps": 5, "range": "from low to high", "low": -2.5, "high": 2.5},
            {"inversion": (7, 0), "direction": (8, 0), "second_direction": (9, 0)},
        ),
        13: Step(
            "SaveImage", 5, {"filename_prefix": "discover_directions"}, {"images": (12, 0)}, title="Save the grid"
        ),
        14: Step("PreviewImage", 5, links={"images": (7, 1)}, title="The inversion"),
    },
    groups=(
        Group("Photograph and models", (1, 2, 3)),
        Group("Find the face and invert it", (4, 5, 6, 7)),
        Group("Discover: change the index", (8, 9)),
        Group("Sweep", (10, 11, 12)),
        Group("Results", (13, 14)),
    ),
    thumbnail=(Shown(13),),
)  # fmt: skip

_MIX = Template(
    name="sample_and_mix",
    note=_MIX_NOTE,
    steps={
        1: Step("GANInversionLoadStyleGAN", 0, {"model": "portraits"}),
        2: Step("GANInversionSample", 1, {"seed": 1, "psi": 0.8, "count": 4}, {"generator": (1, 0)}, title="Faces"),
        3: Step("GANInversionSample", 1, {"seed": 17, "psi": 0.8}, {"generator": (1, 0)}, title="The style"),
        4: Step("PreviewImage", 2, links={"images": (2, 1)}, title="Faces"),
        5: Step("PreviewImage", 2, links={"images": (3, 1)}, title="The style"),
        6: Step(
            "GANInversionMixStyles", 3, {"first_layer": 0, "last_layer": 6}, {"inversion": (2, 0), "style": (3, 0)},
            title="Its shape",
        ),
        7: Step(
            "GANInversionMixStyles", 3, {"first_layer": 7}, {"inversion": (2, 0), "style": (3, 0)}, title="Its colours"
        ),
        8: Step(
            "GANInversionMixStyles", 3, {"first_layer": 0, "amount": 0.5}, {"inversion": (2, 0), "style": (3, 0)},
            title="Half way",
        ),
        9: Step("SaveImage", 4, {"filename_prefix": "mix_shape"}, {"images": (6, 1)}, title="Its shape"),
        10: Step("SaveImage", 4, {"filename_prefix": "mix_colours"}, {"images": (7, 1)}, title="Its colours"),
        11: Step("SaveImage", 4, {"filename_prefix": "mix_half_way"}, {"images": (8, 1)}, title="Half way"),
    },
    groups=(
        Group("Generator", (1,)),
        Group("Random faces: change the seeds", (2, 3, 4, 5)),
        Group("Mix", (6, 7, 8)),
        Group("Results", (9, 10, 11)),
    ),
    thumbnail=(
        Shown(5, "style"), Shown(4, "face 1"), Shown(4, "face 2", index=1), Shown(4, "face 3", index=2),
        Shown(4, "face 4", index=3),
        Shown(5, "its shape:"), *(Shown(9, index=i) for i in range(4)),
        Shown(5, "its colours:"), *(Shown(10, index=i) for i in range(4)),
    ),
    columns=5,
)  # fmt: skip

TEMPLATES = (
    Template(
        name="edit_portrait",
        note=_EDIT_NOTE,
        steps={
            **_LOADERS,
            8: Step("GANInversionApplyDirection", 3, {"strength": 1.0}, {"inversion": (6, 0), "direction": (7, 0)}),
            9: Step("GANInversionRender", 4, links={"inversion": (8, 0)}),
            10: Step(
                "GANInversionPasteBack", 4, {"region": "face"},
                links={"photo": (1, 0), "edited": (9, 0), "crop": (4, 1), "unedited": (9, 1)},
            ),
            11: Step("SaveImage", 5, {"filename_prefix": "edit_portrait"}, {"images": (10, 0)}),
            12: Step("PreviewImage", 5, links={"images": (9, 0)}, title="Edited crop"),
        },
        groups=(
            Group("Photograph and models", (1, 2, 3)),
            Group("Find the face and invert it", (4, 5, 6)),
            Group("Edit: move the slider", (7, 8)),
            Group("Draw and paste back", (9, 10, 11, 12)),
        ),
    ),
    Template(
        name="direction_sweep",
        note=_SWEEP_NOTE,
        steps={
            **_LOADERS,
            8: Step("GANInversionDirectionSweep", 3, {"steps": 5}, {"inversion": (6, 0), "direction": (7, 0)}),
            9: Step("SaveImage", 4, {"filename_prefix": "direction_sweep"}, {"images": (8, 0)}, title="Save the grid"),
            10: Step("PreviewImage", 4, links={"images": (8, 1)}, title="Single frames"),
        },
        groups=(
            Group("Photograph and models", (1, 2, 3)),
            Group("Find the face and invert it", (4, 5, 6)),
            Group("Sweep", (7, 8)),
            Group("Results", (9, 10)),
        ),
    ),
    Template(
        name="dhr_refine",
        note=_DHR_NOTE,
        steps={
            **_REFINED,
            20: Step("SolidMask", 3, {"value": 0.0, "width": 128, "height": 128}, title="The aligned photograph"),
            21: Step("SolidMask", 3, {"value": 1.0, "width": 56, "height": 58}, title="What a smile moves"),
            22: Step(
                "MaskComposite", 3, {"x": 36, "y": 56, "operation": "add"}, {"destination": (20, 0), "source": (21, 0)},
                title="Mouth and cheeks",
            ),
            9: Step("GANInversionDHRRefine", 3, {"merge": "subtract"}, {"inversion": (6, 0), "mask": (22, 0)}),
            10: Step("PreviewAny", 3, links={"source": (9, 4)}, title="Refinement report"),
            11: Step("PreviewImage", 4, links={"images": (9, 3)}, title="Where it cannot draw"),
            12: Step("MaskToImage", 4, links={"mask": (9, 2)}),
            13: Step("PreviewImage", 4, links={"images": (12, 0)}, title="Mask"),
            **_compared((9, 0), "Refined", prefix="dhr_refine", first=14),
        },
        groups=(
            *_REFINED_GROUPS,
            Group("Refine", (9, 10, 11, 12, 13, 20, 21, 22)),
            Group("Edit: move both sliders", (7, 14, 15)),
            Group("Draw both", (16, 17)),
            Group("Compare", (18, 19)),
        ),
        thumbnail=(
            Shown(8, "photograph"), Shown(18, "plain edit"), Shown(11, "cannot be drawn"), Shown(19, "refined edit"),
        ),
        columns=2,
    ),
    Template(
        name="what_it_cannot_draw",
        note=_CANNOT_NOTE,
        steps={
            **{k: step for k, step in _LOADERS.items() if k != 7},
            8: Step("PreviewImage", 2, links={"images": (4, 0)}, title="Aligned photograph"),
            9: Step("PreviewImage", 2, links={"images": (6, 1)}, title="Plain inversion"),
            10: Step("GANInversionPredictInvertibility", 3, links={"inversion": (6, 0)}),
            11: Step("GANInversionSAMMAlign", 3, links={"inversion": (6, 0)}),
            12: Step("GANInversionDHRRefine", 3, {"steps": 10}, {"inversion": (6, 0)}),
            13: Step("PreviewImage", 4, links={"images": (10, 3)}, title="SAM: latent spaces"),
            14: Step("PreviewImage", 4, links={"images": (11, 4)}, title="SAMM: mask and shifts"),
            15: Step("PreviewImage", 4, links={"images": (12, 3)}, title="DHR: mask"),
            16: Step("PreviewAny", 5, links={"source": (10, 4)}, title="SAM: report"),
            17: Step("PreviewAny", 5, links={"source": (11, 5)}, title="SAMM: report"),
            18: Step("PreviewAny", 5, links={"source": (12, 4)}, title="DHR: report"),
            19: Step("MaskToImage", 6, links={"mask": (10, 1)}),
            20: Step("MaskToImage", 6, links={"mask": (11, 2)}),
            21: Step("MaskToImage", 6, links={"mask": (12, 2)}),
            22: Step("SaveImage", 7, {"filename_prefix": "mask_sam"}, {"images": (19, 0)}, title="Mask of SAM"),
            23: Step("SaveImage", 7, {"filename_prefix": "mask_samm"}, {"images": (20, 0)}, title="Mask of SAMM"),
            24: Step("SaveImage", 7, {"filename_prefix": "mask_dhr"}, {"images": (21, 0)}, title="Mask of DHR"),
        },
        groups=(
            Group("Photograph and models", (1, 2, 3)),
            Group("Find the face and invert it", (4, 5, 6, 8, 9)),
            Group("Three methods", (10, 11, 12)),
            Group("What they find", (13, 14, 15, 16, 17, 18)),
            Group("Masks", (19, 20, 21, 22, 23, 24)),
        ),
        thumbnail=(
            Shown(8, "photograph"), Shown(13, "SAM", part=_SQUARE), Shown(14, "SAMM", part=_LEFT), Shown(15, "DHR"),
        ),
        columns=2,
    ),
    Template(
        name="samm_blend",
        note=_SAMM_NOTE,
        steps={
            **_REFINED,
            9: Step("GANInversionSAMMAlign", 3, links={"inversion": (6, 0)}),
            10: Step("PreviewAny", 3, links={"source": (9, 5)}, title="Alignment report"),
            11: Step("PreviewImage", 4, links={"images": (9, 4)}, title="Mask and shifts"),
            12: Step("PreviewImage", 4, links={"images": (9, 1)}, title="Aligned inversion"),
            **_compared((9, 0), "Aligned", prefix="samm_blend", first=13),
            19: Step(
                "GANInversionBlend", 7, {"mode": "source inside mask"},
                {"source": (4, 0), "image": (16, 0), "mask": (9, 2)},
            ),
            20: Step("PreviewImage", 8, links={"images": (19, 0)}, title="Blended into the photograph"),
        },
        groups=(
            *_REFINED_GROUPS,
            Group("Align", (9, 10, 11, 12)),
            Group("Edit: move both sliders", (7, 13, 14)),
            Group("Draw both", (15, 16)),
            Group("Compare and blend", (17, 18, 19, 20)),
        ),
        thumbnail=(
            Shown(8, "photograph"), Shown(17, "plain edit"), Shown(11, "kept as pixels", part=_LEFT),
            Shown(18, "aligned edit"),
        ),
        columns=2,
    ),
    Template(
        name="multilayer_invert",
        note=_MULTILAYER_NOTE,
        steps={
            **_REFINED,
            9: Step("GANInversionPredictInvertibility", 3, links={"inversion": (6, 0)}),
            10: Step("GANInversionMultilayerInvert", 3, {"steps": 100}, {"inversion": (6, 0), "latent_map": (9, 0)}),
            11: Step("PreviewImage", 4, links={"images": (9, 3)}, title="Latent spaces"),
            12: Step("PreviewImage", 4, links={"images": (10, 1)}, title="Multilayer inversion"),
            19: Step("PreviewAny", 4, links={"source": (10, 2)}, title="Inversion report"),
            **_compared((10, 0), "Multilayer", prefix="multilayer_invert", first=13),
        },
        groups=(
            *_REFINED_GROUPS,
            Group("Predict and invert", (9, 10, 11, 12, 19)),
            *_COMPARED_GROUPS,
        ),
        thumbnail=(
            Shown(8, "photograph"), Shown(17, "plain edit"), Shown(11, "latent spaces", part=_SQUARE),
            Shown(18, "multilayer edit"),
        ),
        columns=2,
    ),
    _REGANIE, _COMBINE, _VIDEO, _PROJECT, _DISCOVER, _MIX,
    _tuning("tune_pti", _PTI_NOTE, {"steps": _PTI_STEPS}),
    _tuning("tune_near_perfect", _NEAR_PERFECT_NOTE, {"method": "near-perfect", "steps": _NEAR_PERFECT_STEPS}),
)  # fmt: skip


if __name__ == "__main__":
    write_all()
