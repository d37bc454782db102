"""Files of a run that were edited, cut, or come from elsewhere, as everything that reads them takes them."""

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tinyseed
from tinyseed.cli import main
from tinyseed.engine import checkpoint
from tinyseed.engine.train import train
from tinyseed.errors import InputError
from tinyseed.methods.seed import SeedSettings
from tinyseed.report.page import write_report

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*nested tensors|torch.quantize_per"),
]
faults = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("mutate_checkpoints.py"))))


def test_damaged_files_of_all_kinds_are_refused_or_read():
    """The short form of `python tests/faults/mutate_checkpoints.py 2000`."""
    outcomes = faults.main(150, first=100_000)
    assert set(outcomes) == {"read", "refused"}
    assert min(outcomes.values()) > 10


def settings(photos, out, **changes) -> SeedSettings:
    small = {"epochs": 1, "batch_size": 12, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1}
    networks = {"teacher": "resnet10t", "teacher_weights": "random", "student": "test_resnet"}
    return SeedSettings(data=(str(photos),), out=out, **networks | small | changes)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(settings(photos, out), quiet=True)
    return out


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def unfinished(run) -> Path:
    (run / "summary.json").unlink()
    return run


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue_size", "many"),
        ("queue_size", [1]),
        ("channel_mean", "x"),
        ("warmup_epochs", None),
        ("precision", 7),
        ("workers", 1.5),
        ("epochs", True),
        ("lr", "0.1"),
        ("data", "photos"),
        ("teacher", None),
    ],
)
def test_a_setting_of_another_kind_in_config_json_is_named(name, value, photos, unfinished):
    edit(unfinished / "config.json", lambda config: config.update({name: value}))
    with pytest.raises(InputError, match=rf"resume=.*config\.json: cannot be read: its {name} cannot be"):
        train(settings(photos, unfinished, resume=True), quiet=True)


@pytest.mark.parametrize(
    "text", ["", "{", "[1, 2]", "null", "\0\xff", "[" * 100_000, '{"a": NaN', "9" * 5000]
)
def test_a_config_json_that_is_none_is_refused(text, photos, unfinished, capsys):
    (unfinished / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="resume="):
        train(settings(photos, unfinished, resume=True), quiet=True)
    write_report(unfinished)


def test_a_config_json_saved_by_a_windows_editor_is_read(photos, unfinished):
    path = unfinished / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert train(settings(photos, unfinished, resume=True), quiet=True)["steps"] > 0


def other_optimizer(content):
    state = content["optimizer"]["state"]
    state[next(iter(state))]["momentum_buffer"] = torch.zeros(3)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=2),
        lambda content: content.pop("images"),
        lambda content: content.update(unknown=1),
        lambda content: content.update(step="3"),
        lambda content: content.update(step=True),
        lambda content: content.update(elapsed=float("nan")),
        lambda content: content.update(images=-1),
        lambda content: content.update(module={}),
        lambda content: content.update(evaluations=[1, 2]),
        lambda content: content.update(method={"queue": torch.zeros(())}),
        lambda content: content["module"].update({next(iter(content["module"])): torch.zeros(2, 2)}),
        lambda content: content["module"].update(
            {next(iter(content["module"])): torch.zeros(()).expand(10**5, 10**5)}
        ),
        lambda content: content["optimizer"].update(param_groups=[]),
        other_optimizer,
    ],
)
def test_a_checkpoint_that_was_edited_is_refused(change, photos, unfinished):
    path = unfinished / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(InputError, match=r"resume=.*last\.ckpt"):
        train(settings(photos, unfinished, resume=True), quiet=True)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4", b"\x80\x02}q\x00.", bytes(5000)])
def test_a_checkpoint_that_is_none_is_refused(content, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        checkpoint.load(tmp_path / "last.ckpt")


def test_whatever_the_logs_hold_the_run_goes_on(photos, unfinished):
    odd = (
        b'[1,2]\n{"step": null}\n{"step": "3"}\n{"step": 1e999}\n\xff\xfe\n{"loss": 1}\nnull\n'
        + b"[" * 90_000
        + b"\n"
    )
    for name in ("metrics.jsonl", "quarantine.jsonl"):
        path = unfinished / name
        path.write_bytes(odd + path.read_bytes() + b'{"step": 4, "lo')
    (unfinished / "lineage.json").write_text('{"data": 7}')
    summary = train(settings(photos, unfinished, resume=True), quiet=True)
    assert summary["effective_rank"] > 0
    lines = [json.loads(line) for line in (unfinished / "metrics.jsonl").read_text().splitlines()]
    assert all(isinstance(line["step"], int) for line in lines)


def lie(file, **entries):
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), file, metadata | {name.rstrip("_"): value for name, value in entries.items()})


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("student.safetensors", {"backbone": "resnet18"}),
        ("student.safetensors", {"width": "9" * 30}),
        ("student.safetensors", {"image_size": "-1"}),
        ("projector.safetensors", {"hidden": "-1"}),
        ("projector.safetensors", {"hidden": "2000000000000", "out": "2000000000000"}),
        ("projector.safetensors", {"hidden": "100000", "out": "100000"}),
        ("projector.safetensors", {"kind": "mlp-bn-3"}),
        ("projector.safetensors", {"kind": "unheard-of"}),
        ("projector.safetensors", {"in_": "text"}),
    ],
)
def test_metadata_that_lies_is_refused_by_everything_that_loads_a_model(name, entries, run, capsys):
    lie(run / name, **entries)
    for load in (tinyseed.load, tinyseed.load_teacher):
        with pytest.raises(InputError, match=name):
            load(run)
    for command in (
        ["teachers", str(run)],
        ["evaluate", "knn", "--model", str(run), "--train-data", "x", "--test-data", "x"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_weights_are_not_finite_is_refused(value, run):
    file = run / "student.safetensors"
    state = load_file(file)
    next(tensor for tensor in state.values() if tensor.is_floating_point()).view(-1)[0] = value
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(state, file, metadata)
    with pytest.raises(InputError, match="NaN or infinite"):
        tinyseed.load(run)


def test_integers_are_not_taken_for_weights(run):
    file = run / "student.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({name: value.to(torch.int8) for name, value in load_file(file).items()}, file, metadata)
    with pytest.raises(InputError, match="int8 where the network has float32"):
        tinyseed.load(run)
