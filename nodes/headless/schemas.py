"""Reading V3 schemas: what an input accepts, and whether the editor draws it as a widget.

Works on the real `comfy_api` classes and on the stand-in alike, so it relies on public attributes only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_SEED_NAMES = ("seed", "noise_seed")  # the editor adds a control widget to these unless told otherwise
_LONGEST_LIST = 12
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}

NodeClass = type[Any]


def schema_of(node: NodeClass) -> Any:
    """The node's schema, made anew: lists of files change while a program runs."""
    return node.define_schema()


def inputs_of(node: NodeClass) -> dict[str, Any]:
    """Input name -> input, in the editor's order: required ones first, each kind in the order of the schema."""
    return {one.id: one for one in sorted(schema_of(node).inputs or (), key=lambda one: bool(one.optional))}


def outputs_of(node: NodeClass) -> list[Any]:
    """Outputs in the order of their slots."""
    return list(schema_of(node).outputs or ())


def type_of(socket: Any) -> str:
    """Type name of an input or output; several accepted types are joined by commas, "*" is any."""
    getter = getattr(socket, "get_io_type", None)
    return str(getter() if getter is not None else socket.io_type)


def types_match(given: str, wanted: str) -> bool:
    """Whether an output of type `given` may be linked to an input of type `wanted`."""
    left, right = ({part.strip() for part in name.split(",")} for name in (given, wanted))
    return "*" in left or "*" in right or bool(left & right)


def is_widget(socket: Any) -> bool:
    """Whether the editor shows the input as a widget, which has a value, and not as a bare socket."""
    return type_of(socket) in WIDGET_TYPES and not getattr(socket, "force_input", None)


def widget_slots(socket: Any) -> tuple[Any, ...]:
    """Further values that the editor stores behind the widget's own one in `widgets_values`."""
    control = getattr(socket, "control_after_generate", None)
    if control or (control is None and type_of(socket) == "INT" and socket.id in _SEED_NAMES):
        return ("fixed",)
    if getattr(socket, "upload", None):
        return ("image",)
    return ()


def default_of(socket: Any) -> Any:
    """The widget's value in a fresh node."""
    if (default := getattr(socket, "default", None)) is not None:
        return default
    options = options_of(socket)
    if options:
        return options[0]
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(type_of(socket))


def options_of(socket: Any) -> list[Any] | None:
    """The choices of a combo; None where the input is no combo or fetches its choices elsewhere."""
    options = getattr(socket, "options", None)
    return None if options is None else list(options)


def parse(socket: Any, text: str) -> Any:
    """Turns a command-line text into a value of the input's type.

    Raises ValueError with what was expected.
    """
    kind = type_of(socket)
    if kind == "BOOLEAN":
        if text.lower() not in _TRUE | _FALSE:
            raise ValueError(f"found {text!r}, expected true or false")
        return text.lower() in _TRUE
    if kind == "COMBO":
        for option in options_of(socket) or ():
            if str(option) == text:
                return option
        return text
    if kind not in WIDGET_TYPES:
        raise ValueError(f"it takes a {kind} from another node, which cannot be written as a value")
    return coerce(socket, text)


def coerce(socket: Any, value: Any) -> Any:
    """The value in the input's own type, as ComfyUI converts it. Raises ValueError with what was expected."""
    kind = type_of(socket)
    try:
        if kind == "INT":
            return int(value)
        if kind == "FLOAT":
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"found {value!r}, expected {describe(socket)}") from None
    if kind == "STRING":
        return str(value)
    if kind == "BOOLEAN":
        return bool(value)
    return value


def problem_with(socket: Any, value: Any) -> str | None:
    """What is wrong with a value of the right type: out of range, or not among the choices."""
    low, high = getattr(socket, "min", None), getattr(socket, "max", None)
    outside = (low is not None and value < low) or (high is not None and value > high)
    if type_of(socket) in ("INT", "FLOAT") and outside:
        return f"found {value}, expected {describe(socket)}"
    options = options_of(socket)
    if options is None:
        return None
    chosen = value if isinstance(value, list) and getattr(socket, "multiselect", False) else [value]
    if any(one not in options for one in chosen):
        return f"found {value!r}, expected {describe(socket)}"
    return None


def describe(socket: Any) -> str:
    """What an input accepts, for messages."""
    kind = type_of(socket)
    low, high = getattr(socket, "min", None), getattr(socket, "max", None)
    words = {"INT": "a whole number", "FLOAT": "a number", "STRING": "text", "BOOLEAN": "true or false"}
    if kind in words:
        limits = [f"{word} {limit}" for word, limit in (("from", low), ("to", high)) if limit is not None]
        return " ".join([words[kind], *limits])
    options = options_of(socket)
    if options is None:
        return f"a link to an output of type {kind}"
    if not options:
        return "one of its choices, of which there is none here"
    shown = ", ".join(repr(option) for option in options[:_LONGEST_LIST])
    return f"one of {shown}" + (f" and {len(options) - _LONGEST_LIST} more" if len(options) > _LONGEST_LIST else "")


@lru_cache(maxsize=1)
def known_nodes() -> Mapping[str, NodeClass]:
    """Every node that can run without ComfyUI: this package's and the core nodes workflows need."""
    from .. import all_nodes
    from .core_nodes import core_nodes

    return {**core_nodes(), **all_nodes()}
