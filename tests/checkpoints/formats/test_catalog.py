"""Every record says where its format is from, and the fixed position embeddings of two of them are theirs."""

import pytest
import torch

from tinyseed.checkpoints.formats.catalog import FORMATS
from tinyseed.checkpoints.formats.positions import are_sin_cos, sin_cos


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_record_states_its_source_and_how_it_is_recognized(form):
    assert "github.com/" in form.source
    assert form.sign or form.where


def test_position_embeddings_of_moco_v3_and_mae_are_distinguished():
    rows, columns = (sin_cos(14, 384, first)[None] for first in ("rows", "columns"))
    assert not rows[0, 0].any()
    # Patch 29 is in row 2, column 1; the first number of each half is the sine of the place itself.
    assert torch.allclose(rows[0, 1 + 29, [0, 192]], torch.tensor([2.0, 1.0]).sin())
    assert torch.allclose(columns[0, 1 + 29, [0, 192]], torch.tensor([1.0, 2.0]).sin())
    for positions, first, other in ((rows, "rows", "columns"), (columns, "columns", "rows")):
        assert are_sin_cos(positions, first)
        assert are_sin_cos(positions.half(), first)
        assert not are_sin_cos(positions, other)
        assert not are_sin_cos(positions + 0.05 * torch.randn(positions.shape), first)
    for shape in ((1, 196, 384), (1, 197, 382), (197, 384), (2, 197, 384), (1, 1, 384)):
        assert not are_sin_cos(torch.zeros(shape), "rows")
