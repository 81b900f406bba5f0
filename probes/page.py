"""What the pages have in common: pictures that lie inside the page, and nothing from outside that acts."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from gwtwins.probes import plots
from gwtwins.strain.command import write_bytes
from gwtwins.strain.errors import InputError

_FOLDER = Path(__file__).parent
_ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of the text around them."""
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Picture:
    """One picture of a page."""

    name: str
    """File name without its ending, and anchor in the page."""
    title: str
    caption: str
    alt: str
    """What it shows, for those who do not see it."""
    draw: Callable[[plots.Theme], Figure]
    draw_narrow: Callable[[plots.Theme], Figure] | None = None
    """The same for a narrow window, where the first would be too small to read."""


def drawn(picture: Picture, folder: Path) -> dict[str, Any]:
    """The picture as a page wants it; its light version, wide, is written to ``folder`` too."""
    figure = picture.draw(plots.LIGHT)
    width, height = (figure.get_size_inches() * figure.dpi).astype(int)
    light = plots.png(figure)
    write_bytes(folder / f"{picture.name}.png", light)
    shown = {"light": _encoded(light), "dark": _encoded(plots.png(picture.draw(plots.DARK)))}
    if picture.draw_narrow is not None:
        for key, theme in (("narrow_light", plots.LIGHT), ("narrow_dark", plots.DARK)):
            shown[key] = _encoded(plots.png(picture.draw_narrow(theme)))
    return {**vars(picture), **shown, "width": int(width), "height": int(height)}


def stored(path: Path, name: str, title: str, caption: str, alt: str) -> dict[str, Any]:
    """A PNG file that is there already, on light paper, as a page wants it.

    Raises:
        InputError: it is not a PNG file.
    """
    data = path.read_bytes()
    if not data.startswith(_PNG) or len(data) < 24:
        raise InputError(path, "is not a picture", "a PNG file")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    words = {"name": name, "title": title, "caption": caption, "alt": alt}
    return {**words, "light": _encoded(data), "width": width, "height": height}


def render_page(path: Path, template: str, **values: Any) -> None:
    """Fill ``template``, a file beside this module, with ``values``, each of them escaped."""
    loader = jinja2.FileSystemLoader(_FOLDER)
    frame = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, finalize=_harmless)
    write_bytes(path, frame.get_template(template).render(values).encode("utf-8", "replace"))


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _harmless(value: Any) -> Any:
    """What the page shows, with nothing in it that acts; escaping comes after."""
    return _ACTING.sub("\ufffd", value) if type(value) is str else value
