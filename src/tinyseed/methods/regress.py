"""Regression: the student's vector of a view is to be the teacher's, image by image, without other images.

Source: the row "ℓ2" of Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), table 4; with a deeper head and the teacher's
backbone as the target Navaneet et al., SimReg: Regression as a Simple Yet Effective Tool for Self-supervised Knowledge
Distillation, BMVC 2021 (arXiv 2201.05131): see the recipe simreg.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tinyseed.methods.base import Forward, MethodSpec, StepOutput
from tinyseed.methods.one_view import OneView
from tinyseed.methods.parts import regression, shapes
from tinyseed.settings.train import DistillSettings


@dataclass(frozen=True, kw_only=True)
class RegressSettings(DistillSettings):
    """`tinyseed distill --method regress`; the defaults are those of the SEED paper's comparison."""

    loss: Literal["l2", "cosine"] = "l2"
    """Distance between the unit vectors: l2, the squared one, or cosine, 1 − cos, half of it: the same as l2 with half
    the learning rate, but for the weight decay."""
    projector: Literal["mlp", "mlp-bn", "mlp-bn-3", "linear"] = "mlp"
    """The student's head onto the teacher's dimension."""

    OWN: ClassVar = frozenset({"loss", "projector"})


class Regress(OneView):
    """The method: a student, and no state beside it."""

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> StepOutput:
        """The distance between both networks' vectors of the same view."""
        del step
        student, teacher = self.both(forward, views)
        return StepOutput(regression.regression_loss(student, teacher, loss=self.settings.loss))


REGRESS = MethodSpec(
    name="regress",
    label="Regression",
    about="Regression: the student's vector of each view is to be the teacher's",
    settings=RegressSettings,
    build=Regress,
    collapse_hint="A lower `lr` or another `projector`",
    loss_note="The mean distance between the student's and the teacher's unit vectors.",
)
