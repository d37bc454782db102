"""The report as a whole: read it as a browser would, and break its files one by one."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tinyseed.errors import InputError, RunError
from tinyseed.report.page import write_report

VOID = {"meta"}


class Reader(HTMLParser):
    """Checks that tags close in order; collects text and attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside_style = False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def read(folder: Path) -> tuple[str, Reader]:
    """Write and read a report: balanced, self-contained, without scripts."""
    path = write_report(folder)
    assert path == folder / "report.html"
    page = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object", "image", "use"}
    for _, attributes in reader.tags:
        assert not {name for name in attributes if name in ("src", "href", "action") or name.startswith("on")}
    assert not re.search(r"@import|url\(|expression\(", page)
    assert "Traceback" not in page
    assert sorted(entry.name for entry in folder.iterdir() if "report" in entry.name) == ["report.html"]
    reader.text = reader.text.replace("\N{NO-BREAK SPACE}", " ")
    return page, reader


def step_lines(steps: int, **changes) -> list[dict]:
    return [
        {
            "step": step,
            "epoch": step // 50,
            "loss": 7 - 4 * step / steps,
            "lr": 0.03,
            "images_per_s": 650.0,
            "data_wait": 0.05,
            **changes,
        }
        for step in range(10, steps + 1, 10)
    ]


def evaluation_lines(steps: int, knn: tuple[float, float] = (35.5, 43.5), rank: float = 90.0) -> list[dict]:
    lines = []
    for place in range(5):
        share = place / 4
        lines.append(
            {
                "step": int(steps * share),
                "epoch": int(steps * share) // 50,
                "knn_top1": knn[0] + share * (knn[1] - knn[0]),
                "knn_top1_teacher": 48.1,
                "knn_ratio": 0.9,
                "neighbour_agreement": 0.12 + 0.3 * share,
                "effective_rank": 60 + share * (rank - 60),
                "effective_rank_teacher": 141.0,
                "target_entropy": 2.5,
            }
        )
    return lines


CONFIG = {
    "command": "distill",
    "teacher": "runs/teacher",
    "student": "resnet18",
    "lr": 0.03,
    "workers": 2,
    "val_data": [],
    "resume": False,
}
LINEAGE = {
    "began": "2026-01-02T03:04:05+00:00",
    "data": {"images": 1000, "fingerprint": "abc123"},
    "software": {"torch": "2.9"},
}


@pytest.fixture
def run(tmp_path):
    def build(
        *,
        steps: int = 200,
        evaluations: list[dict] | None = None,
        finished: bool = True,
        config=CONFIG,
        **changes,
    ) -> Path:
        folder = tmp_path / "run-7"
        folder.mkdir()
        evaluations = evaluation_lines(steps) if evaluations is None else evaluations
        lines = sorted(evaluations + step_lines(steps, **changes), key=lambda line: line["step"])
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "lineage.json").write_text(json.dumps(LINEAGE))
        if finished:
            summary = {
                "command": config["command"],
                "steps": steps,
                "epochs": 4,
                "minutes": 12.0,
                "loss": 3.0,
            }
            summary |= {"parameters": 500_000, "parameters_teacher": 11_000_000}
            if evaluations:
                summary |= {
                    name: value for name, value in evaluations[-1].items() if name not in ("step", "epoch")
                }
                names = ("knn_top1", "neighbour_agreement", "effective_rank")
                summary |= {
                    f"{name}_random": evaluations[0][name] for name in names if name in evaluations[0]
                }
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return build


def charts(page: str) -> list[str]:
    return re.findall(r"<figure><h3>(.*?)</h3>", page)


def level(page: str) -> str:
    (found,) = re.findall(r'<section class="verdict (\w+)">', page)
    return found


def test_a_good_run_says_so_first(run):
    page, reader = read(run())
    assert level(page) == "good"
    assert (
        "It learnedThe student predicts the class of 43.5 % of the held-out images from their neighbors (k-NN): "
        "8.0 points more than before training (35.5 %), 90 % of its teacher's accuracy (48.1 %). "
        "The student shares 42 % of its teacher's nearest neighbors (before training: 12 %). "
        "It has 500k parameters, 22 times fewer than its teacher."
    ) in reader.text
    assert reader.text.index("It learned") < reader.text.index("How it went")
    assert 'class="warnings"' not in page
    assert "Not on this page" not in page
    assert charts(page) == [
        "Loss",
        "k-NN top-1",
        "Neighbor agreement",
        "Effective rank",
        "Entropy of the teacher&#x27;s target",
        "Learning rate",
        "Images per second",
        "Waiting for data",
    ]
    for told in (
        "runs/teacher → resnet18",
        "run-7",
        "200 steps",
        "12 min",
        "2026-01-02 03:04",
        "workers",
        "abc123",
    ):
        assert told in reader.text


def test_labels_stand_at_the_axes(run):
    page, _ = read(run())
    chart = re.search(r"<h3>k-NN top-1</h3>.*?</figure>", page, re.DOTALL)
    assert chart is not None
    for told in (
        ">0\N{NO-BREAK SPACE}%<",
        ">20\N{NO-BREAK SPACE}%<",
        ">step<",
        ">100<",
        "<title>step 200\nstudent: 43.5",
    ):
        assert told in chart.group()


def test_an_unlabelled_run_is_judged_by_its_teachers_neighbours(run):
    lines = [
        {name: value for name, value in line.items() if "knn" not in name} for line in evaluation_lines(200)
    ]
    page, reader = read(run(evaluations=lines))
    assert level(page) == "good"
    assert "k-NN top-1" not in charts(page)
    assert (
        "The student shares 42 % of its teacher's nearest neighbors (before training: 12 %)." in reader.text
    )


def test_a_pretrained_network_has_no_teacher(run):
    of_student = ("step", "epoch", "knn_top1", "effective_rank")
    lines = [{name: line[name] for name in of_student} for line in evaluation_lines(200)]
    page, reader = read(
        run(evaluations=lines, config={"command": "pretrain moco-v2", "backbone": "resnet50"})
    )
    assert level(page) == "good"
    assert "The network predicts the class of 43.5 %" in reader.text
    assert charts(page)[:3] == ["Loss", "k-NN top-1", "Effective rank"]


@pytest.mark.parametrize(
    ("knn", "expected", "word"),
    [
        ((35.0, 30.0), "bad", "Worse than before training"),
        ((35.0, 36.5), "doubtful", "No clear gain"),
        ((35.0, 37.5), "good", "It learned"),
    ],
)
def test_the_verdict_follows_the_gain(run, knn, expected, word):
    page, reader = read(run(evaluations=evaluation_lines(200, knn=knn)))
    assert level(page) == expected
    assert word in reader.text
    assert ("points below that before training" in reader.text) == (expected == "bad")


def tell_images(folder: Path, **data) -> None:
    (folder / "lineage.json").write_text(json.dumps({"data": data}))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"images": 1000, "trained_on": 900}, "doubtful"),  # 100 images: two standard errors are 9.8 points
        ({"images": 4000, "trained_on": 3600}, "good"),  # 400 images: 4.9 points
        ({"images": 1000, "trained_on": 900, "held_out_images": 5000}, "good"),
        ({}, "good"),
    ],
)
def test_a_difference_that_chance_may_make_is_no_verdict(run, images, expected):
    folder = run()  # 35.5 % → 43.5 %
    tell_images(folder, **images)
    page, reader = read(folder)
    assert level(page) == expected
    assert ("With 100 held-out images, 9.8 points either way may be chance." in reader.text) == (
        expected == "doubtful"
    )


def test_agreement_among_a_handful_of_images_is_not_told(run):
    folder = run()
    for trained_on, told in ((99, False), (98, True)):
        tell_images(folder, images=110, trained_on=trained_on)
        page, reader = read(folder)
        assert ("nearest neighbors (before training" in reader.text) == told
        assert ("Neighbor agreement" in charts(page)) == told


@pytest.mark.parametrize(("rank", "is_collapse"), [(1.3, True), (6.9, True), (7.2, False)])
def test_a_collapse_is_told_before_everything(run, rank, is_collapse):
    """Below 2, or below 5 % of the teacher's 141 directions (7.05)."""
    page, reader = read(run(evaluations=evaluation_lines(200, rank=rank)))
    assert ("the model has collapsed" in reader.text) == is_collapse
    assert level(page) == ("bad" if is_collapse else "good")


@pytest.mark.parametrize(("wait", "warned"), [(0.45, True), (0.29, False)])
def test_waiting_for_data_is_warned_of(run, wait, warned):
    _, reader = read(run(data_wait=wait))
    assert (f"waited for images {100 * wait:.0f} % of the time" in reader.text) == warned


def test_a_loss_that_was_no_number_is_warned_of(run):
    page, reader = read(run(loss=None))
    assert "not finite" in reader.text
    assert "Loss" not in charts(page)


def test_an_unfinished_run_shows_its_latest_figures(run):
    page, reader = read(run(finished=False))
    assert "not finished" in reader.text
    assert "It is learning" in reader.text
    assert "8.0 points more than before training (35.5 %)" in reader.text
    assert "summary.json is missing" in reader.text
    assert len(charts(page)) == 8


def test_a_run_that_has_only_begun_is_not_compared_with_itself(run):
    page, reader = read(run(finished=False, evaluations=evaluation_lines(200)[:1]))
    assert level(page) == "unknown"
    assert "nothing was evaluated on held-out images" in reader.text


def test_loss_alone_is_no_verdict(run):
    page, reader = read(run(evaluations=[]))
    assert level(page) == "unknown"
    assert "does not tell whether anything was learned" in reader.text


def test_an_empty_folder_gives_a_page_of_notes(tmp_path):
    page, reader = read(tmp_path)
    assert "No metrics yet" in reader.text
    for name in ("config.json", "summary.json", "lineage.json", "metrics.jsonl"):
        assert f"{name} is missing" in reader.text
    assert charts(page) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'"text"', b"1" * 9000]
)
@pytest.mark.parametrize(
    "name", ["config.json", "summary.json", "lineage.json", "metrics.jsonl", "quarantine.jsonl"]
)
def test_a_broken_file_is_a_note(run, name, content):
    folder = run()
    (folder / name).write_bytes(content)
    page, reader = read(folder)
    if content or name.endswith(".json"):
        assert name in reader.text.split("Not on this page")[1]
    assert level(page) in ("good", "unknown")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "quarantine.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_a_note(run, name):
    folder = run()
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert f"{name} cannot be read" in read(folder)[1].text


def test_a_torn_last_line_and_odd_figures_are_left_out(run):
    folder = run(finished=False)
    odd = [
        '{"step": 210, "loss": NaN}',
        '{"step": 220, "loss": Infinity, "lr": true}',
        '{"step": 230, "loss": "low"}',
        '{"step": 240, "loss": 1e999}',
        '{"step": null, "loss": 5}',
        '{"loss": 5}',
        f'{{"step": 250, "loss": 1{"0" * 400}}}',
        "",
        '{"step": 260, "lo',
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join(odd))
    page, reader = read(folder)
    assert "1 line of metrics.jsonl could not be read and is left out" in reader.text
    last = re.search(r'<h3>Loss</h3>.*?aria-label="([^"]*)"', page, re.DOTALL)
    assert last is not None
    assert last.group(1).endswith("to 3")


def test_a_step_written_twice_counts_once_as_written_last(run):
    folder = run(steps=40, evaluations=[], finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, "loss": 1.25}) + "\n")
    page, _ = read(folder)
    assert page.count("<title>step 20\nloss: 1.25</title>") == 1
    assert page.count("<title>step 20\nloss") == 1


EVIL = "</style></script><script>alert('x')</script>\"&<b>"


def test_what_comes_from_files_is_escaped(run):
    folder = run(
        config={**CONFIG, "student": EVIL, EVIL: EVIL, "command": EVIL, "val_data": [EVIL, {"x": EVIL}]}
    )
    (folder / "lineage.json").write_text(json.dumps({"began": EVIL, EVIL: {EVIL: [EVIL]}, "x": EVIL}))
    (folder / "quarantine.jsonl").write_text(json.dumps({"index": EVIL, "name": EVIL, "reason": EVIL}) + "\n")
    page, reader = read(folder)
    assert "<script>" not in page
    assert page.count("</style>") == 1
    assert reader.text.count("alert('x')") >= 8


def test_unreadable_images_are_listed_up_to_fifty(run):
    folder = run()
    lines = [{"index": number, "name": f"photo-{number}.jpg", "reason": "cut short"} for number in range(73)]
    (folder / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page, reader = read(folder)
    assert "Unreadable images: 73" in reader.text
    assert page.count("<td>cut short</td>") == 50
    assert "photo-49.jpg" in reader.text
    assert "photo-50.jpg" not in reader.text
    assert "and 23 more, all in quarantine.jsonl" in reader.text
    assert "7.3 % of the images could not be read" in reader.text


def test_names_that_are_no_unicode_are_shown_somehow(run):
    folder = run()
    (folder / "quarantine.jsonl").write_text('{"index": 1, "name": "caf\\udce9.jpg", "reason": "x"}\n')
    assert "caf\\udce9.jpg" in read(folder)[1].text


def test_a_very_long_setting_is_cut(run):
    _, reader = read(run(config={**CONFIG, "data": ["photos/" * 1000]}))
    assert "… (7,000 characters)" in reader.text
    assert len(reader.text) < 20_000


def test_a_long_run_gives_a_small_page(run):
    folder = run(steps=200_000)
    page, _ = read(folder)
    assert len(page) < 500_000
    points = max(path.count("L") for path in re.findall(r'class="line [a-z]+" d="([^"]*)"', page))
    assert 400 < points < 500


def test_the_former_report_is_replaced(run):
    folder = run()
    (folder / "report.html").write_text("former")
    assert "It learned" in read(folder)[0]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "none")


def test_a_page_that_cannot_be_written_is_told(run, monkeypatch):
    folder = run()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match=r"could not save .*report\.html: .*No space left on device"):
        write_report(folder)
    monkeypatch.undo()
    assert not (folder / "report.html").exists()
