"""What all methods with a teacher share: which views both networks see, and which channels the teacher sees."""

from dataclasses import replace

from tinyseed.data.augmentation import View, ViewSettings, published
from tinyseed.errors import MISSING, InputError
from tinyseed.methods.base import Group, Method
from tinyseed.methods.parts import contract, encoder, queues, teacher, torch
from tinyseed.methods.views import FreshTargets, Targets
from tinyseed.settings.base import words
from tinyseed.settings.train import DistillSettings


class Distillation(Method):
    """A student that looks at the same view as a frozen teacher, each at its own resolution and normalization.

    The teacher is a function that the method calls, never a part of its module.

    Attributes:
        targets: what the teacher makes of the views.
    """

    def __init__(
        self,
        student: "encoder.Encoder",
        frozen: "teacher.Teacher",
        group: Group | None = None,
        *,
        teacher_bands: tuple[int, ...] | None = None,
        targets: Targets | None = None,
    ) -> None:
        super().__init__(student, student, group)
        self.teacher = frozen
        self.targets: Targets = targets or FreshTargets(frozen, teacher_bands)

    def view(self, settings: ViewSettings, image_size: int, teacher_size: int | None = None) -> View:
        """A random view at the higher of the two networks' resolutions; by default the teacher's is its own."""
        return View(settings, max(image_size, teacher_size or self._teacher.input.size))

    def teacher_side(self, size: int, image_size: int) -> int:
        """Side of the images that the teacher sees of a crop that is smaller than the other views.

        Args:
            size: of the crop for the student.
            image_size: of the other views for the student.

        Returns:
            The same part of the teacher's own side, raised to a multiple of its patch. A teacher that takes images of
            one size only sees the crop enlarged to that size.
        """
        teacher = self._teacher
        side = teacher.input.fitting(round(size * teacher.input.size / image_size))
        return side if teacher.takes(side) else teacher.input.size

    def taught(self, views: tuple[View, ...]) -> tuple[View, ...]:
        """Those of the method's views that the teacher sees: the first ones; by default all."""
        return views

    def to(self, device: "torch.device") -> None:
        """Move the method's own state and the teacher to a device."""
        super().to(device)
        self._teacher.to(device).channels_last()

    def teacher_queues(self) -> "tuple[queues.Queue, ...]":
        """The queues that hold rows of the teacher only, so that students may have them in common, place by place."""
        return ()

    @property
    def _teacher(self) -> "teacher.Teacher":
        assert self.teacher is not None
        return self.teacher


def augmentation(settings: DistillSettings) -> ViewSettings:
    """The random augmentation of the views: a published one, with crops and jitter of its own where they are given."""
    drawn = published(settings.augmentation, settings.blur_probability)
    if settings.crop_scale:
        low, high = settings.crop_scale
        drawn = replace(drawn, crop_scale=(low, high))
    if settings.color_jitter:
        names = ("brightness", "contrast", "saturation", "hue")
        drawn = replace(drawn, **dict(zip(names, settings.color_jitter, strict=True)))
    return drawn


def teacher_bands(settings: DistillSettings, expected: "contract.InputContract") -> tuple[int, ...] | None:
    """The channels of the images that the teacher sees, counted from 0; None: all as they are.

    Raises:
        InputError: too few or too many were given, they have to be given, or the teacher expects another pixel range.
    """
    given, wanted = settings.teacher_bands, expected.channels
    reads_rgb = wanted == 3 and not expected.pixel_range
    if not reads_rgb and expected.pixel_range != settings.pixel_range:
        remedy = f"the teacher was trained with {words(expected.pixel_range) or 'the default'}; give the same"
        raise InputError(words(settings.pixel_range) or "default", remedy, argument="pixel_range")
    if given:
        if len(given) != wanted:
            remedy = f"the teacher sees {wanted} channels; give exactly {wanted}"
            raise InputError(words(given), remedy, argument="teacher_bands")
        return tuple(band - 1 for band in given)
    if settings.channels == wanted:
        return None
    if settings.channels == 1:
        return (0,) * wanted
    if wanted == 3 and settings.channels > 3:
        return (0, 1, 2)
    example = words(tuple(min(place, settings.channels) for place in range(1, wanted + 1)))
    remedy = (
        f"the teacher sees {wanted} channels, the images have {settings.channels}; "
        f"say which ones it sees, as in {example}"
    )
    raise InputError(MISSING, remedy, argument="teacher_bands")
