import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tinyseed.studies import plot
from tinyseed.studies.base import Axis

pytest.importorskip("matplotlib")

ROWS = [
    {"label": "random <init>", "knn_top1": 20.0, "knn_top1_std": 1.0, "linear_top1": 30.0, "x": 0.01},
    {"label": "SEED", "knn_top1": 40.0, "knn_top1_std": 2.0, "linear_top1": 55.0, "x": 0.1},
    {"label": "not yet", "x": 1.0},
]
TEACHER = {"name": "teacher", "knn_top1": 50.0, "linear_top1": 60.0}


@pytest.mark.parametrize(
    "axis", [None, Axis("temperature", log=True), Axis("parameters", "parameters_teacher")]
)
def test_the_plot_is_a_picture_and_a_drawing_with_every_measured_row(tmp_path, axis):
    assert plot.draw(ROWS, [TEACHER], axis, "a study", tmp_path)
    with Image.open(tmp_path / "plot.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    for color in ((0x0F, 0x8A, 0x5C), (0x7A, 0x4B, 0xD0)):  # k-NN and linear probe
        assert (pixels == color).all(-1).sum() > 50
    text = (tmp_path / "plot.svg").read_text()
    ElementTree.fromstring(text)
    assert "a study" in text
    by_label = axis is None or axis.metric != "x"
    assert ("SEED" in text) == by_label
    assert "not yet" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"plot.png", "plot.svg"}


def test_the_same_numbers_make_the_same_bytes(tmp_path):
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plot.draw(ROWS, [], None, "a study", tmp_path / name)
        drawn.append([(tmp_path / name / f"plot.{kind}").read_bytes() for kind in ("png", "svg")])
    assert drawn[0] == drawn[1]


def test_means_are_where_they_belong(tmp_path):
    """The linear probe's two means, which have no spread, give the axis; the k-NN's means are on it."""
    plot.draw(ROWS, [], None, "a study", tmp_path)
    drawn = re.findall(
        r'<use [^>]* x="([\d.]+)" y="[\d.]+" style="fill: (#\w+)', (tmp_path / "plot.svg").read_text()
    )
    before_legend = {
        color: [float(x) for x, of in drawn if of == color][:6] for color in ("#0f8a5c", "#7a4bd0")
    }
    left, right = min(before_legend["#7a4bd0"]), max(before_legend["#7a4bd0"])
    scale = (right - left) / (55 - 30)
    for mean in (20, 40):
        place = left + (mean - 30) * scale
        assert any(x == pytest.approx(place, abs=0.01) for x in before_legend["#0f8a5c"]), mean


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert not plot.draw(ROWS[2:], [], None, "a study", tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_there_is_a_line_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    assert "pip install 'tinyseed[plots]'" in plot.missing()
    assert not plot.draw(ROWS, [], None, "a study", tmp_path)
