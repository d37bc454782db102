"""Names with control, bidirectional and zero-width characters, HTML or great length: on terminal, page and in files."""

import io
import json
import re
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import tinyseed
from tinyseed.cli import main
from tinyseed.data.loader import BadRecord
from tinyseed.engine.run_folder import Quarantine, RunFolder
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation.report import markdown_table, text_table
from tinyseed.files import json_text
from tinyseed.progress import Progress
from tinyseed.report.page import write_report
from tinyseed.text import in_html, one_line, shown, visible

pytestmark = pytest.mark.usefixtures("one_thread")
NASTY = (
    *(
        "\x1b[31mred\x1b[0m",
        "a\rb",
        "a\nb",
        "\u202egnp.exe",
        "zero\u200bwidth",
        "\ufeffbom",
        "\x9b2J",
        "\u2028",
        "\x07",
    ),
    *(
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</style></title>&amp;",
        "[/bold]",
        "`lr`",
        "é 日本 ✓",
    ),
)


@pytest.mark.parametrize("name", NASTY)
def test_an_error_is_one_visible_line(name, capsys, tmp_path):
    for error in (
        InputError(name, f"wrong: {name}"),
        RunError(f"failed: {name}"),
        InputError(name, name, argument="lr"),
    ):
        assert str(error).isprintable()
    with pytest.raises(SystemExit):
        main(["teachers", f"{tmp_path}/{name}.pth"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert visible(name) in err or "`lr`" in name


def seen(character: str) -> bool:
    """Whether a character can be seen, or is a space of some width."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


@given(st.text())
def test_text_is_visible_and_the_page_and_json_hold_it(text):
    assert all(map(seen, shown(text)))
    assert visible(visible(text)) == visible(text)
    assert not re.search(r"[<>\"']", in_html(text))
    written = json_text({"name": text})
    assert all(map(seen, written))
    if "://" not in text:
        assert json.loads(written) == {"name": text}


def test_what_is_visible_stays_as_it_is():
    assert visible("é 日本 ✓ ½ naïve") == "é 日本 ✓ ½ naïve"
    assert visible("a\tb\u202e\U000e0041") == "a\\tb\\u202e\\U000e0041"
    assert json_text("日本\x9b\U000e0041") == '"日本\\u009b\\udb40\\udc41"'


def test_long_names_lose_their_middle():
    message = str(InputError("a" * 9000, f"lacks {'b' * 9000}; rename it"))
    assert len(message) < 1000
    assert message.startswith("aaa")
    assert message.endswith("bbb; rename it")
    assert len(one_line("a b " * 9000)) <= 4000


@pytest.mark.parametrize("name", NASTY)
def test_progress_shows_names_as_they_are_and_on_their_line(name, monkeypatch):
    for terminal in (True, False):
        stream = io.StringIO()
        progress = Progress()
        progress.console = Console(file=stream, force_terminal=terminal, width=200, highlight=False)
        progress.say(f"reading {name}")
        assert stream.getvalue() == f"reading {visible(name)}\n"


def test_tables_keep_their_cells():
    rows = (["class", "ap"], [[name, "1.0"] for name in NASTY])
    lines = [*text_table(rows), *markdown_table(rows)]
    assert len(lines) == 2 * len(NASTY) + 3
    assert all(line.isprintable() for line in lines)
    assert "<script>" not in "\n".join(markdown_table(rows))
    assert markdown_table((["a|b"], [["c|d"]])) == ["| a\\|b |", "| --- |", "| c\\|d |"]


def test_the_page_of_a_run_is_inert(tmp_path):
    config = {
        "command": "distill",
        **{name: name for name in NASTY},
        "teacher": NASTY[9],
        "student": NASTY[10],
    }
    config |= {"data": list(NASTY), "from": "https://me:hunter2@host/a?token=T0KEN"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "lineage.json").write_text(json.dumps({"data": config, NASTY[9]: {NASTY[10]: NASTY[9]}}))
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 1, "command": NASTY[9]}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, NASTY[9]: NASTY[9]}) + "\n")
    lines = [json.dumps({"index": NASTY[9], "name": name, "reason": name}) + "\n" for name in NASTY]
    (tmp_path / "quarantine.jsonl").write_text("".join(lines))
    page = write_report(tmp_path).read_text()
    assert not re.search(r"<script|<img|onerror=alert\(1\)>|</title>&amp", page)
    assert page.count("<title>") - page.count('"hover"><title>') == 1
    assert all(line.isprintable() for line in page.split("\n"))
    assert "hunter2" not in page
    assert "T0KEN" not in page
    assert "\\u202egnp.exe" in page


def test_written_lines_are_json_whatever_the_names_are(tmp_path):
    folder = RunFolder(tmp_path)
    for path in (folder.metrics, folder.quarantine):
        path.touch()
    names = (*NASTY, "\udcff.jpg")
    quarantine = Quarantine(folder, 1000)
    quarantine.begin()
    quarantine.add([BadRecord(number, name, name) for number, name in enumerate(names)])
    folder.log({"step": 1, "loss": float("nan"), "rank": float("inf")})
    written = folder.quarantine.read_text().split("\n")[:-1]
    assert [json.loads(line)["name"] for line in written] == list(names)
    assert all(line.isprintable() for line in written)
    assert json.loads(folder.metrics.read_text()) == {"step": 1, "loss": None, "rank": None}
    assert Quarantine(folder, 1000).known == set(names)


def test_names_of_tensors_are_escaped(tmp_path, capsys):
    torch.save(
        {"\x1b[31mevil\u202e\n" + "x" * 5000: torch.zeros(2, 2), "a\rb": torch.zeros(2)}, tmp_path / "a.pth"
    )
    with pytest.raises(SystemExit):
        main(["teachers", str(tmp_path / "a.pth")])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert len(err) < 5000


@pytest.mark.slow
def test_images_and_classes_of_any_name_are_evaluated(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for name in ("\x1b[31mred", "\u202eblue|<b>"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            picture = Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8))
            picture.save(tmp_path / "data" / name / f"{number}\n\x1b[31m.png")
        (tmp_path / "data" / name / "broken\r\u202e.png").write_bytes(b"\x89PNG broken")
    out = tmp_path / "report\x1b[31m"
    data = ["--train-data", str(tmp_path / "data"), "--test-data", str(tmp_path / "data")]
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "evaluate",
                "knn",
                "--model",
                "random:test_resnet",
                "--image-size",
                "32",
                *data,
                "--out",
                str(out),
            ]
        )
    assert ended.value.code == 0
    shown_text = capsys.readouterr()
    for text in (shown_text.out, shown_text.err, (out / "evaluate-knn.md").read_text()):
        assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads((out / "evaluate-knn.json").read_text())["classes"] == 2
    assert tinyseed.__name__
