"""The command `gan-inversion`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import GANInversionError, InvalidInputError
from . import evaluate

logger = logging.getLogger(__name__)

PROGRAM = "gan-inversion"
_DTYPES = ("float32", "float16", "bfloat16")
_TRAINED_PARTS = (
    "generator", "encoder", "directions", "landmarks", "identity", "perceptual", "samm", "invertibility", "multilayer",
    "reganie",
)  # fmt: skip
_REFUSED, _UNEXPECTED, _INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 unexpected failure, 2 refused, 130 interrupted."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    _set_up_logging(options.verbose)
    try:
        return options.function(options)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has left; Python would complain again while it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNEXPECTED
    except GANInversionError as error:
        if options.debug:
            raise
        for problem in getattr(error, "problems", (str(error),)):
            print(f"{PROGRAM}: error: {' '.join(problem.split())}", file=sys.stderr)
        return _REFUSED
    except Exception as error:
        if options.debug:
            raise
        print(
            f"{PROGRAM}: unexpected {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)",
            file=sys.stderr,
        )
        return _UNEXPECTED


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    # SUPPRESS, so that the flags work before and after the command alike.
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    common.add_argument(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="tell what is going on, node by node"
    )
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Edit a real photograph with a StyleGAN.", parents=[common]
    )
    parser.set_defaults(debug=False, verbose=False)
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", parents=[common], help="run a workflow without ComfyUI")
    run.add_argument("workflow", metavar="WORKFLOW.json", type=Path, help="API format, or as saved by ComfyUI's editor")
    run.add_argument(
        "--set", metavar="NODE.INPUT=VALUE", dest="assignments", action="append", default=[],
        help="change an input; NODE is an id or a title; may be given several times",
    )  # fmt: skip
    run.add_argument("--output", metavar="DIR", type=Path, required=True, help="where pictures are written")
    run.add_argument("--input-dir", metavar="DIR", type=Path, help="where LoadImage looks; default: the current folder")
    run.set_defaults(function=_run)

    demo = commands.add_parser("demo", parents=[common], help="edit a photograph from end to end, offline")
    demo.add_argument("--output", metavar="DIR", type=Path, required=True, help="where pictures are written")
    demo.add_argument("--image", metavar="FILE", type=Path, help="a photograph of your own; default: an astronaut")
    demo.add_argument("--strength", metavar="X", type=float, help="how far to edit; negative reverses")
    demo.add_argument(
        "--direction", metavar="NAME", help="what to edit: a direction file or catalogue id; default: a smile"
    )
    demo.set_defaults(function=_demo)

    models = commands.add_parser("models", parents=[common], help="list the models, what is here, and the licences")
    models.add_argument("--verify", action="store_true", help="also check the sha256 of large files")
    models.set_defaults(function=_models)

    convert = commands.add_parser("convert", parents=[common], help="turn any supported weight file into safetensors")
    convert.add_argument("source", metavar="SRC", help="a weight file or a catalogue id")
    convert.add_argument("destination", metavar="DST", type=Path, help="ends in .safetensors")
    convert.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="float32 is exact, the others half the size"
    )
    convert.add_argument(
        "--part",
        choices=("decoder", "discriminator"),
        help="the generator inside an encoder checkpoint; the discriminator beside one",
    )
    convert.set_defaults(function=_convert)

    evaluate.add_command(commands, common).set_defaults(function=_evaluate)

    train = commands.add_parser("train", help="train a part; `train PART --help` lists its options", add_help=False)
    train.add_argument("part", metavar="PART", choices=_TRAINED_PARTS, help=f"one of {', '.join(_TRAINED_PARTS)}")
    train.add_argument("arguments", nargs=argparse.REMAINDER, help="options of that trainer")
    train.set_defaults(function=_train)
    return parser


class _Version(argparse.Action):
    """Prints the version; looks it up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"{PROGRAM} {version()}")
        parser.exit()


def version() -> str:
    """Version of the installed package, or that of the checkout where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version("gan-inversion")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.WARNING)
    package = logging.getLogger(__name__.partition(".nodes")[0])
    package.setLevel(logging.INFO if verbose else logging.WARNING)


def _run(options: argparse.Namespace) -> int:
    from .runner import Runner
    from .workflow_files import read_workflow, with_values

    workflow = with_values(read_workflow(options.workflow), options.assignments)
    with _progress() as on_node:
        runner = Runner(input_dir=options.input_dir or Path.cwd(), output_dir=options.output, on_node=on_node)
        result = runner.run(workflow)
    for shown in result.outputs.values():
        for text in shown.get("text", ()):
            print(text)
    for path in result.images:
        print(path)
    print(f"{sum(result.executions.values())} nodes in {result.seconds:.1f} s", file=sys.stderr)
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar over the nodes of a run with the steps inside each, where someone is watching; log lines otherwise."""
    from tqdm import tqdm

    from .stand_in import ProgressBar

    if not sys.stderr.isatty():
        yield lambda title, done, total: logger.info("%d of %d: %s", done + 1, total, title)
        return
    with tqdm(unit="node", leave=False, bar_format="{n}/{total} {bar:20} {desc}{postfix} [{elapsed}]") as bar:

        def show(title: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(title)

        def step(inner: ProgressBar) -> None:
            bar.set_postfix_str(f"{inner.current}/{inner.total}")

        ProgressBar.listener = step
        try:
            yield show
        finally:
            ProgressBar.listener = None


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    with _progress() as on_node:
        report = run_demo(
            options.output, image=options.image, strength=options.strength, direction=options.direction, on_node=on_node
        )
    for path in report.files:
        print(path)
    print(f"{report.direction}, strength {report.strength:g}: {report.seconds:.1f} s", file=sys.stderr)
    return 0


def _models(options: argparse.Namespace) -> int:
    from ...model_registry import catalogue

    print(catalogue.format_table(catalogue.status(verify=options.verify)))
    return 0


def _convert(options: argparse.Namespace) -> int:
    import torch

    from ...model_registry import convert

    print(convert(options.source, options.destination, getattr(torch, options.dtype), part=options.part))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    report = evaluate.run_evaluation(options)
    print(report.table)
    for path in report.files:
        print(path)
    return 0


def _train(options: argparse.Namespace) -> int:
    registry = importlib.import_module("...model_registry", __package__)  # core does not know it: it is handed in
    module = importlib.import_module(f"...core.training.{options.part}", __package__)
    trainer = getattr(module, "main", None)
    if trainer is None:
        raise InvalidInputError(f"train {options.part}: this part has no command of its own.")
    print(trainer(options.arguments, registry))
    return 0


if __name__ == "__main__":
    sys.exit(main())
