"""The picture of the demo: the nearest neighbors of test photos, for several models side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tinyseed.files import replacing

TILE, GAP, MARGIN, LABEL = 84, 6, 24, 20
PAPER, INK, FAINT = (255, 255, 255), (30, 32, 36), (110, 114, 122)
SAME, OTHER = (46, 139, 87), (205, 92, 60)


@dataclass(frozen=True)
class Neighbor:
    """A photo that a model found, and whether it has the query's class."""

    photo: Image.Image
    same_class: bool


@dataclass(frozen=True)
class Query:
    """A test photo, its class, and what each model finds most similar to it, nearest first."""

    photo: Image.Image
    name: str
    found: Sequence[Sequence[Neighbor]]


def draw_neighbors(path: Path, models: Sequence[str], queries: Sequence[Query], caption: str) -> None:
    """Write a PNG: a row for each query, a block of neighbors for each model; a green frame marks the same class."""
    shown = len(queries[0].found[0])
    block = shown * (TILE + GAP) + MARGIN
    width = MARGIN + TILE + MARGIN + len(models) * block
    height = MARGIN + 2 * LABEL + len(queries) * (TILE + LABEL + GAP) + 2 * LABEL
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    _text(draw, (MARGIN, MARGIN), "test photo", INK)
    for place, model in enumerate(models):
        _text(draw, (_block_left(place, block), MARGIN), model, INK)
    for row, query in enumerate(queries):
        top = MARGIN + 2 * LABEL + row * (TILE + LABEL + GAP)
        _photo(canvas, query.photo, (MARGIN, top), None)
        _text(draw, (MARGIN, top + TILE + 2), query.name, FAINT)
        for place, neighbors in enumerate(query.found):
            for order, neighbor in enumerate(neighbors):
                left = _block_left(place, block) + order * (TILE + GAP)
                _photo(canvas, neighbor.photo, (left, top), SAME if neighbor.same_class else OTHER)
    _text(draw, (MARGIN, height - MARGIN - LABEL // 2), caption, FAINT)
    with replacing(path) as unfinished:
        canvas.save(unfinished, "PNG", optimize=True)


def _block_left(place: int, block: int) -> int:
    return MARGIN + TILE + MARGIN + place * block


def _photo(
    canvas: Image.Image, photo: Image.Image, corner: tuple[int, int], frame: tuple[int, int, int] | None
) -> None:
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.resize((TILE, TILE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    canvas.paste(square, corner)
    if frame is not None:
        box = (corner[0], corner[1], corner[0] + TILE - 1, corner[1] + TILE - 1)
        ImageDraw.Draw(canvas).rectangle(box, outline=frame, width=3)


def _text(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, ink: tuple[int, int, int]) -> None:
    draw.text(corner, text, fill=ink, font=ImageFont.load_default(14))
