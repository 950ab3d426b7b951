"""Project: aligned photographs -> inversions by optimising the code, for generators without an encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.inversion import Inversion
from ..core.losses import Distance, multiscale_distance
from ..core.projection import ProjectionConfig, project
from ._comfy import (
    EXPERT,
    Progress,
    check_interrupt,
    intermediate_device,
    io,
    on_device,
    optimising,
    progress,
    schema,
    with_room,
)
from ._drawing import draw, fit_to_generator
from ._refinement import differentiable, modules_of
from ._types import (
    CropSocket,
    CropsWire,
    GeneratorSocket,
    GeneratorWire,
    InversionSocket,
    InversionWire,
    check_choice,
    check_finite,
    check_same_generator,
    common_batch,
    crops_for,
    item,
    to_comfy,
    to_core,
)

_DISTANCES = _MULTI_SCALE, _LPIPS = "multi-scale", "lpips-vgg"
_SPACES = {"W+": "w-plus", "W": "w"}
_GRADIENT_COPIES = 4  # activations kept for the backward pass, in forward passes


class GANInversionProject(io.ComfyNode):
    """Inverts photographs by optimisation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionProject",
            display_name="Project (W / W+)",
            category="GAN Inversion/invert",
            description=(
                "Finds the code of an aligned photograph by optimisation, step by step, with a live preview. Works "
                "with every generator, needs no encoder, and takes from seconds on a GPU to minutes on a CPU for each "
                "picture. Start it from an encoder's inversion to refine that one."
            ),
            search_aliases=["inversion", "projector", "optimise latent", "w+", "image2stylegan"],
            inputs=[
                io.Image.Input("image", tooltip="Aligned squares, as Align Face gives them; any size."),
                GeneratorSocket.Input("generator", tooltip="From Load StyleGAN; it is not changed."),
                io.Combo.Input(
                    "space",
                    options=list(_SPACES),
                    default="W+",
                    optional=True,
                    tooltip="W+ has one code for each layer and comes closer to the photograph; W has one for all and "
                    "edits better.",
                ),
                io.Int.Input(
                    "steps",
                    default=200,
                    min=1,
                    max=5000,
                    optional=True,
                    tooltip="Optimisation steps. 100 to 500 is useful; time grows in proportion.",
                ),
                InversionSocket.Input(
                    "start",
                    optional=True,
                    tooltip="An inversion to begin from, such as Encode's: fewer steps are needed then.",
                ),
                CropSocket.Input(
                    "crop", optional=True, tooltip="From Align Face: kept with the inversion for Paste Back."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    optional=True,
                    tooltip="Of the small random moves that help to find a good code. Has no effect on a start from an "
                    "inversion.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.05,
                    min=0.001,
                    max=1.0,
                    step=0.001,
                    round=0.001,
                    optional=True,
                    **EXPERT,
                    tooltip="Size of a step, in units of the spread of codes. 0.02 to 0.1 is useful; higher is faster "
                    "and rougher.",
                ),
                io.Float.Input(
                    "pull_to_average",
                    default=0.002,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    optional=True,
                    **EXPERT,
                    tooltip="Keeps codes near the average one, so that they stay editable: 0 is closest to the "
                    "photograph, above 0.02 likeness suffers.",
                ),
                io.Combo.Input(
                    "distance",
                    options=list(_DISTANCES),
                    default=_MULTI_SCALE,
                    optional=True,
                    **EXPERT,
                    tooltip="What the optimiser takes for likeness: multi-scale compares pixels at several sizes and "
                    "needs no file; lpips-vgg compares features as people see them, is closer to the photograph and "
                    "slower, needs the packages lpips and torchvision, and downloads 553 MB once into models/stylegan.",
                ),
            ],
            outputs=[
                InversionSocket.Output(display_name="inversion", tooltip="For Apply Direction, Render and the others."),
                io.Image.Output(
                    display_name="reconstruction", tooltip="What the generator draws from the codes, unedited."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        generator: GeneratorWire,
        space: str = "W+",
        steps: int = 200,
        start: InversionWire | None = None,
        crop: CropsWire | None = None,
        seed: int = 0,
        learning_rate: float = 0.05,
        pull_to_average: float = 0.002,
        distance: str = _MULTI_SCALE,
    ) -> io.NodeOutput:
        """One optimisation after another, so that memory does not grow with the batch."""
        check_choice("space", space, _SPACES)
        check_choice("distance", distance, _DISTANCES)
        check_finite(learning_rate=learning_rate, pull_to_average=pull_to_average)
        target = fit_to_generator(to_core(image), generator.generator)
        count = len(target)
        crops = tuple(crops_for(crop, count))
        if start is not None:
            check_same_generator(start.generator, generator, "Inputs 'start' and 'generator'")
            if common_batch(image=count, start=len(start.inversion)) != count:
                raise InvalidInputError(
                    f"Input 'start' holds {len(start.inversion)} inversions, input 'image' {count} image."
                )
        config = ProjectionConfig(
            space=_SPACES[space], steps=steps, learning_rate=learning_rate, mean_weight=pull_to_average, seed=seed
        )
        measure = _distance(distance)
        report = progress(count * (steps + 1))
        memory = _GRADIENT_COPIES * generator.activation_bytes
        codes: list[Tensor] = []
        with on_device([generator.network], modules_of([measure]), memory) as (device, loaded), optimising():
            network = differentiable(generator.generator)

            def found(index: int) -> Inversion:
                begin = None if start is None else item(start.inversion.w_plus, index).clone().to(device)
                photo = target[index : index + 1].clone().to(device)
                step = _offset(report, index * steps)
                return project(photo, network, config, start=begin, distance=measure, progress=step)

            for index in range(count):
                one = with_room(partial(found, index), loaded)
                codes.append(one.w_plus.to(intermediate_device()))
        info = {**one.info, "generator": generator.name}
        inversion = Inversion(
            target.to(intermediate_device()), torch.cat(codes), generator.generator, crops=crops, info=info
        )
        drawn = draw(inversion, generator, None, report, done=count * steps)
        return io.NodeOutput(InversionWire(inversion, generator), to_comfy(drawn))


def _distance(name: str) -> Distance:
    if name == _MULTI_SCALE:
        return multiscale_distance
    from ..model_registry import perceptual_distance

    # Weights made in inference mode could not take part in an optimisation.
    with optimising():
        return perceptual_distance(name, progress=progress(), check_interrupt=check_interrupt)


def _offset(report: Progress, done: int) -> Callable[[int, int, Tensor | None], None]:
    def step(value: int, _: int, preview: Tensor | None) -> None:
        report(done + value, preview=preview)

    return step
