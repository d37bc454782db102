"""Whether networks give patches that patch affinity can compare."""

from tinyseed.errors import InputError
from tinyseed.methods.parts import affinity, encoder, patches, teacher
from tinyseed.settings.train import DistillSettings


def require_patches(settings: DistillSettings, student: "encoder.Encoder", frozen: "teacher.Teacher") -> None:
    """Look whether both networks give patches that can be compared, as far as that is known before a batch comes.

    Raises:
        InputError: one does not, or the teacher is computed by an engine that gives none.
    """
    if settings.teacher_engine not in ("auto", "torch"):
        remedy = "gives no patches, which `patch_affinity_weight` needs; give torch"
        raise InputError(settings.teacher_engine, remedy, argument="teacher_engine")
    if "patches" not in frozen.gives:
        remedy = f"its patches are needed for `patch_affinity_weight`, and {frozen.architecture} does not give them"
        raise InputError(frozen.spec, remedy, argument="teacher")
    require_grid(settings.NETWORK, settings.network, patches.count_patches(student.backbone))


def require_grid(network: str, name: str, cells: int) -> None:
    """Look whether a network's patches are a grid that can be compared.

    Raises:
        InputError: they are not.
    """
    if affinity.is_grid(cells):
        return
    remedy = "`patch_affinity_weight` needs a square grid of patches or a feature map, and it gives none"
    if cells == 1:
        remedy = (
            "its last feature map has a single cell, and `patch_affinity_weight` compares cells; give a larger "
            "`image_size`, or `small_stem` for a ResNet"
        )
    raise InputError(name, remedy, argument=network)
