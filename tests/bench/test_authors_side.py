"""The restated published loop computes what tinyseed computes: only then is a comparison of their speed one."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from tinyseed.engine.schedule import Schedule
from tinyseed.objectives.seed import seed_loss


@pytest.fixture
def authors_side():
    import authors_side

    return authors_side


class Given(nn.Module):
    """A network whose rows are given."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, _):
        return self.rows


def test_loss_and_gradient_are_those_of_seed_loss(authors_side):
    student, teacher = (normalize(torch.randn(8, 16, dtype=torch.float64), dim=1) for _ in range(2))
    model = authors_side.Published(Given(student), Given(teacher), 16, 64)
    model.queue = model.queue.double()
    rows = model.queue.T.clone()
    loss = authors_side.soft_cross_entropy(*model(torch.zeros(8), 0.2, 0.01))
    loss.backward()
    ours = student.clone().requires_grad_()
    expected = seed_loss(ours, teacher, rows, student_temperature=0.2, teacher_temperature=0.01)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(model.student.rows.grad, ours.grad, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(model.queue[:, :8].T, teacher, rtol=0, atol=0)
    torch.testing.assert_close(model.queue[:, 8:].T, rows[8:], rtol=0, atol=0)


@pytest.mark.parametrize("epochs", [10, 100])
def test_learning_rates_are_those_of_cosine_epoch(authors_side, epochs):
    schedule = Schedule(
        peak=0.4 * 128 / 256,
        steps_per_epoch=1,
        epochs=epochs,
        warmup_epochs=None,
        max_minutes=None,
        shape="cosine-epoch",
        start=0.4,
    )
    for epoch in range(epochs):
        assert authors_side.rate(epoch, epochs, 0.4, 128) == pytest.approx(schedule.lr(epoch, 0.0), rel=1e-12)
