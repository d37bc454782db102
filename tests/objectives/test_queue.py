"""The ring buffer against collections.deque(maxlen), by a state machine and in its corners."""

import io
from collections import deque

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from jaxtyping import config as jaxtyping_config

from tinyseed.objectives.queue import Queue, auto_queue_size

pytestmark = pytest.mark.usefixtures("one_thread")


class QueueMachine(RuleBasedStateMachine):
    """Any order of pushes, saves and restores holds the rows that a deque holds."""

    @initialize(size=st.integers(0, 13))
    def start(self, size):
        self.queue = Queue(size, 2)
        self.model = deque(maxlen=size)
        self.address = self.queue.rows().untyped_storage().data_ptr()
        self.count = 0
        self.saved = None

    @rule(m=st.integers(0, 40))
    def push(self, m):
        numbers = range(self.count, self.count + m)
        self.count += m
        self.queue.push(torch.tensor([[i, -i] for i in numbers], dtype=torch.float32).reshape(m, 2))
        self.model.extend(numbers)

    @rule()
    def save(self):
        file = io.BytesIO()
        torch.save(self.queue.state_dict(), file)
        self.saved = file.getvalue(), list(self.model)

    @rule(fresh=st.booleans())
    def restore(self, fresh):
        if self.saved is None:
            return
        state, model = self.saved
        if fresh:
            self.queue = Queue(self.queue.size, 2)
            self.address = self.queue.rows().untyped_storage().data_ptr()
        self.queue.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        self.model = deque(model, maxlen=self.queue.size)

    @invariant()
    def holds_what_the_model_holds(self):
        if not hasattr(self, "queue"):
            return
        rows = self.queue.rows()
        assert len(self.queue) == len(rows) == len(self.model)
        assert sorted(rows[:, 0].tolist()) == list(self.model)
        assert torch.equal(rows[:, 0], -rows[:, 1])
        if len(rows) < self.queue.size:
            assert rows[:, 0].tolist() == list(self.model)

    @invariant()
    def never_moves(self):
        if hasattr(self, "queue"):
            assert self.queue.rows().untyped_storage().data_ptr() == self.address


QueueMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestQueueMachine = QueueMachine.TestCase


def test_rows_is_a_view_of_the_filled_part():
    queue = Queue(5, 3)
    assert queue.rows().shape == (0, 3)
    queue.push(torch.ones(2, 3))
    rows = queue.rows()
    assert rows.shape == (2, 3)
    assert rows.untyped_storage().data_ptr() == queue._buffer.untyped_storage().data_ptr()
    queue.push(torch.full((5, 3), 2.0))
    assert rows.eq(2).all()


def test_a_push_writes_only_the_places_of_the_oldest():
    queue = Queue(8, 1)
    queue.push(torch.arange(8.0)[:, None])
    queue.push(torch.arange(8.0, 14.0)[:, None])
    before = queue.rows().clone()
    queue.push(torch.tensor([[14.0], [15.0], [16.0]]))
    changed = (queue.rows() != before)[:, 0]
    assert changed.sum() == 3
    assert before[changed][:, 0].tolist() == [8.0, 6.0, 7.0]


def test_more_than_size_in_mid_wrap_keeps_the_last():
    queue = Queue(4, 1)
    queue.push(torch.arange(3.0)[:, None])
    queue.push(torch.arange(3.0, 14.0)[:, None])
    assert sorted(queue.rows()[:, 0].tolist()) == [10.0, 11.0, 12.0, 13.0]
    queue.push(torch.tensor([[14.0]]))
    assert sorted(queue.rows()[:, 0].tolist()) == [11.0, 12.0, 13.0, 14.0]


def test_size_zero_is_always_empty():
    queue = Queue(0, 3)
    queue.push(torch.ones(7, 3))
    assert len(queue) == 0
    assert queue.rows().shape == (0, 3)
    queue.load_state_dict(queue.state_dict())


def test_pushed_rows_are_copied_cast_and_cut_from_their_graph():
    queue = Queue(4, 2)
    rows = torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True)
    queue.push(rows)
    assert queue.rows().dtype == torch.float32
    assert not queue.rows().requires_grad
    with torch.no_grad():
        rows.zero_()
    assert queue.rows().eq(1).all()


def test_it_is_no_module_and_so_in_no_state_dict():
    module = torch.nn.Module()
    module.queue = Queue(4, 2)  # pyright: ignore[reportAttributeAccessIssue]
    assert not isinstance(module.queue, torch.nn.Module)
    assert module.state_dict() == {}
    assert list(module.buffers()) == []


def test_to_gives_the_queue_itself():
    queue = Queue(4, 2)
    queue.push(torch.ones(3, 2))
    assert queue.to("meta") is queue
    assert queue.device == torch.device("meta")
    assert len(queue) == 3


def test_restored_queues_go_on_alike():
    first, second = Queue(7, 2, dtype=torch.float64), Queue(7, 2, dtype=torch.float64)
    first.push(torch.randn(10, 2, dtype=torch.float64))
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for queue in (first, second):
        queue.push(torch.arange(8, dtype=torch.float64).reshape(4, 2))
    assert first.rows().equal(second.rows())


@pytest.mark.parametrize("other", [Queue(5, 2), Queue(4, 3)])
def test_another_size_or_dimension_is_refused_by_name(other):
    message = rf"size and dim \({other.size}, {other.dim}\): give those of this queue, \(4, 2\)"
    with pytest.raises(ValueError, match=message):
        Queue(4, 2).load_state_dict(other.state_dict())


@pytest.mark.parametrize(("filled", "position"), [(5, 0), (-1, 0), (2, 3), (4, 4), (4, -1)])
def test_positions_that_no_ring_has_are_refused(filled, position):
    state = Queue(4, 2).state_dict() | {"filled": torch.tensor(filled), "next": torch.tensor(position)}
    with pytest.raises(ValueError, match=f"filled {filled}, next {position}"):
        Queue(4, 2).load_state_dict(state)


def test_missing_and_unknown_entries_are_refused():
    state = Queue(4, 2).state_dict()
    for wrong in ({"buffer": state["buffer"]}, state | {"extra": state["next"]}):
        with pytest.raises(ValueError, match="queue state: has"):
            Queue(4, 2).load_state_dict(wrong)


def test_rows_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match=r"rows: shape \[3, 4\]: give \[m, 2\]"):
        Queue(4, 2).push(torch.ones(3, 4))
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=r"rows: shape \[2\]: give \[m, 2\]"):
            Queue(4, 2).push(torch.ones(2))
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(("size", "dim", "name"), [(-1, 2, "size: -1"), (4, 0, "dim: 0")])
def test_sizes_out_of_range(size, dim, name):
    with pytest.raises(ValueError, match=name):
        Queue(size, dim)


@pytest.mark.parametrize(
    ("images", "size"),
    [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 1),
        (4, 2),
        (4061, 1024),
        (4096, 2048),
        (50_000, 16_384),
        (131_071, 32_768),
        (131_072, 65_536),
        (1_281_167, 65_536),
        (10**9, 65_536),
    ],
)
def test_auto_queue_size(images, size):
    assert auto_queue_size(images) == size
