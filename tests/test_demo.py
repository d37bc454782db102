import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tinyseed.assets import clothing
from tinyseed.checkpoints.load import load_model
from tinyseed.demo import STUDENT, TEACHER, Row, demo, standard_error, verdict
from tinyseed.errors import InputError
from tinyseed.models.backbones import build_backbone
from tinyseed.picture import OTHER, SAME, Neighbor, Query, draw_neighbors
from tinyseed.settings.demo import DemoSettings


def row(model: str, knn_top1: float, parameters: int = 100) -> Row:
    return Row(model, "net", parameters, knn_top1, 10.0, 1.0)


def test_the_student_has_at_most_a_quarter_of_the_teachers_parameters():
    student, teacher = build_backbone(STUDENT), load_model(TEACHER).backbone
    sizes = [sum(p.numel() for p in network.parameters()) for network in (student, teacher)]
    assert sizes[0] <= sizes[1] / 4


def test_the_verdict_is_honest_about_small_gains():
    rows = [
        row("random init", 34.0),
        row("baseline", 30.0),
        row("distilled", 35.0),
        row("teacher", 50.0, parameters=1000),
    ]
    told = verdict(rows, images=1000)
    assert "10 times fewer parameters" in told
    assert "70 % of its k-NN accuracy" in told
    assert "Against the baseline: +5.0 ± 2.1 points." in told
    assert "Against random init: +1.0 ± 2.1 points (within two standard errors: no clear difference)." in told


def test_the_standard_error_is_the_binomials():
    generator = np.random.default_rng(0)
    draws = 100 * generator.binomial(400, 0.3, 20_000) / 400
    assert standard_error(30.0, 400) == pytest.approx(draws.std(), rel=0.02)


def test_the_picture_frames_neighbors_by_class(tmp_path):
    photo = Image.new("RGB", (40, 60), (10, 20, 30))
    found = [[Neighbor(photo, True), Neighbor(photo, False)]]
    draw_neighbors(tmp_path / "n.png", ["one"], [Query(photo, "hat", found)], "caption")
    with Image.open(tmp_path / "n.png") as image:
        picture = np.asarray(image)
    for color in (SAME, OTHER, (10, 20, 30)):
        assert (picture == color).all(-1).any(), color


def test_a_time_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"minutes=0\.0: "):
        demo(DemoSettings(out=tmp_path / "demo", minutes=0.0))


@pytest.fixture
def quarter(tmp_path, monkeypatch):
    """The demo on every fourth photo: embedding all of them takes most of its time."""
    for split in ("train", "test"):
        table = pq.read_table(clothing(split))
        pq.write_table(table.take(np.arange(0, len(table), 4)), tmp_path / f"{split}.parquet")
    monkeypatch.setattr("tinyseed.demo.clothing", lambda split: tmp_path / f"{split}.parquet")


@pytest.mark.slow
@pytest.mark.usefixtures("quarter")
def test_the_demo_ends_in_its_table_and_picture_and_reuses_what_is_done(tmp_path, capsys):
    config = DemoSettings(out=tmp_path / "demo", minutes=0.1)
    rows = demo(config)
    assert [line.model for line in rows] == ["random init", "baseline", "distilled", "teacher"]
    assert rows[-1].neighbour_agreement == pytest.approx(100.0)
    assert json.loads((tmp_path / "demo" / "table.json").read_text())[2]["backbone"] == STUDENT
    with Image.open(tmp_path / "demo" / "neighbours.png") as picture:
        assert picture.width > 800
    capsys.readouterr()
    again = demo(config)
    assert capsys.readouterr().out.count("finished before") == 2
    assert again == rows
