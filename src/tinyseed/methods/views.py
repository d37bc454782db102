"""The views of a batch as networks see them, and what a frozen teacher makes of them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tinyseed.methods.parts import contract, render, shapes, teacher, torch
from tinyseed.settings.train import TeacherOutput

# A base class is needed now; the modules of `parts` are imported when a batch comes.
if TYPE_CHECKING:
    ViewTuple = tuple[shapes.ImagesOfAnySize, ...]
else:
    ViewTuple = tuple


class Views(ViewTuple):
    """The random views of a batch, one tensor in [0, 1] for each view: a tuple that knows its address.

    Networks that expect the same images share one normalized tensor, which lives as long as the batch does.

    Attributes:
        indices: [n], positions of the images in their source; None for views that were made elsewhere.
        epoch: epoch at which the views' randomness is addressed.
        given: what teachers gave for them, so that it lives no longer than the views do.
    """

    indices: "shapes.Indices | None"
    epoch: int
    given: "dict[object, dict[tuple[int, TeacherOutput], torch.Tensor]]"

    def __new__(
        cls,
        images: "Iterable[shapes.ImagesOfAnySize]",
        indices: "shapes.Indices | None" = None,
        epoch: int = 0,
    ) -> "Views":
        """Views with their address."""
        views = super().__new__(cls, images)
        views.indices, views.epoch = indices, epoch
        views._seen, views.given = {}, {}
        return views

    @classmethod
    def of(cls, views: "tuple[shapes.ImagesOfAnySize, ...]") -> "Views":
        """The same views; without an address where they have none."""
        return views if isinstance(views, cls) else cls(views)

    def seen(
        self, place: int, expected: "contract.InputContract", bands: tuple[int, ...] | None = None
    ) -> "shapes.ImagesOfAnySize":
        """A view as a network expects it: at its resolution, normalized.

        Args:
            place: which view.
            expected: the images that the network expects.
            bands: channels of the view that it sees, counted from 0; None: all of them.
        """
        view = self[place]
        resized = view.shape[-1] != expected.size
        key = (place, expected.size, expected.mean, expected.std, resized and expected.interpolation, bands)
        if key not in self._seen:
            # A list as an index would have to be copied to a GPU, and waited for.
            chosen = view if bands is None else torch.stack([view[:, band] for band in bands], 1)
            sized = render.resized(chosen, expected.size, expected.interpolation)
            self._seen[key] = render.normalize(sized, expected.mean, expected.std)
        return self._seen[key]

    _seen: "dict[tuple[object, ...], shapes.ImagesOfAnySize]"


@runtime_checkable
class Targets(Protocol):
    """What a frozen teacher makes of views: computed, shared by several students, or kept from an earlier pass."""

    def __call__(self, views: Views, place: int = 0, side: int | None = None) -> "shapes.Embeddings":
        """The teacher's unit rows [n, d] of one view of each image, without gradient.

        Args:
            views: of a batch.
            place: which view.
            side: of the images that the teacher sees, in pixels; by default its own. The same for a place in all calls.
        """
        ...

    def of(self, views: Views, place: int, output: TeacherOutput, side: int | None = None) -> "torch.Tensor":
        """Another output of the teacher for the same view: its features [n, f], or its patches [n, p, f]."""
        ...

    def together(
        self, views: Views, place: int, outputs: tuple[TeacherOutput, ...]
    ) -> "dict[TeacherOutput, torch.Tensor]":
        """Several outputs for one view, in one pass; the last digits may differ from those of one output alone."""
        ...


class FreshTargets:
    """Targets that the teacher computes, once for all students that look at the same views.

    Args:
        frozen: the teacher.
        bands: channels of a view that it sees, counted from 0; None: all of them.
    """

    def __init__(self, frozen: "teacher.Teacher", bands: tuple[int, ...] | None = None) -> None:
        self.teacher = frozen
        self.bands = bands

    def __call__(self, views: Views, place: int = 0, side: int | None = None) -> "shapes.Embeddings":
        """The teacher's unit rows of one view of each image."""
        return self.of(views, place, "rows", side)

    def of(self, views: Views, place: int, output: TeacherOutput, side: int | None = None) -> "torch.Tensor":
        """Any output of the teacher for one view of each image."""
        given = views.given.setdefault(self, {})
        if (place, output) not in given:
            given |= self._asked(views, place, output, side)
        return given[place, output]

    def together(
        self, views: Views, place: int, outputs: tuple[TeacherOutput, ...]
    ) -> "dict[TeacherOutput, torch.Tensor]":
        """Several outputs for one view of each image, in one pass.

        They are kept apart from those of one output: another engine may compute these, to other last digits.
        """
        given = views.given.setdefault((self, outputs), {})
        if (place, outputs[0]) not in given:
            made = self.teacher.outputs(self._seen(views, place, None), outputs)
            given |= {(place, output): value for output, value in made.items()}
        return {output: given[place, output] for output in outputs}

    def _seen(self, views: Views, place: int, side: int | None) -> "shapes.ImagesOfAnySize":
        """A view as the teacher sees it."""
        expected = self.teacher.input
        return views.seen(place, expected if side is None else replace(expected, size=side), self.bands)

    def _asked(
        self, views: Views, place: int, output: TeacherOutput, side: int | None
    ) -> "dict[tuple[int, TeacherOutput], torch.Tensor]":
        """What the teacher gives for a view: what is wanted, and perhaps more."""
        seen = self._seen(views, place, side)
        value = self.teacher(seen) if output == "rows" else self.teacher.outputs(seen, (output,))[output]
        return {(place, output): value}
