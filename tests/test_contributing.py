"""The worked examples of CONTRIBUTING.md are complete: each is one file, one line in a list, and a test that passes."""

import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tinyseed
from tinyseed import cli, evaluations
from tinyseed.checkpoints import recognition
from tinyseed.data import sources
from tinyseed.methods import catalog

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = dict(
    re.findall(
        r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL
    )
)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Loads an example of the document as the module that it would be."""

    def load(path: str) -> ModuleType:
        name = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
        file = tmp_path / Path(path).name
        file.write_text(BLOCKS[path], encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:
                monkeypatch.setattr(sys.modules[parent], child, module, raising=False)
        spec.loader.exec_module(module)
        return module

    return load


def run_tests(module: ModuleType, request: pytest.FixtureRequest) -> int:
    """Run the test functions of an example with this session's fixtures; returns how many there were."""
    tests = [function for name, function in vars(module).items() if name.startswith("test_")]
    for function in tests:
        names = inspect.signature(function).parameters
        function(**{name: request.getfixturevalue(name) for name in names})
    return len(tests)


def test_the_document_has_the_examples_with_their_tests():
    assert [path for path in BLOCKS if path.startswith("src/")] == [
        "src/tinyseed/methods/alignment.py",
        "src/tinyseed/evaluation/centroid.py",
        "src/tinyseed/data/tables.py",
        "src/tinyseed/checkpoints/formats/bootstrap.py",
    ]
    assert len(BLOCKS) == 8


def test_the_example_format_is_recognized(added, monkeypatch, request):
    module = added("src/tinyseed/checkpoints/formats/bootstrap.py")
    monkeypatch.setattr(recognition, "FORMATS", (*recognition.FORMATS, module.BOOTSTRAP))
    assert run_tests(added("tests/checkpoints/formats/test_bootstrap.py"), request) == 1


def test_the_example_method_trains_for_two_steps(added, photos, tmp_path, monkeypatch, request, capsys):
    module = added("src/tinyseed/methods/alignment.py")
    monkeypatch.setattr(catalog, "METHODS", (*catalog.METHODS, module.ALIGNMENT))
    assert run_tests(added("tests/methods/test_alignment.py"), request) == 1
    out = tmp_path / "run"
    settings = {"epochs": 1, "batch_size": 24, "image_size": 32, "workers": 0, "log_every": 1, "dim": 16}
    summary = tinyseed.pretrain("alignment", data=photos, backbone="resnet10t", out=out, **settings)
    assert (summary["command"], summary["steps"]) == ("pretrain alignment", 2)
    losses = [json.loads(line).get("loss") for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sum(loss is not None for loss in losses) == 2
    assert (out / "encoder.safetensors").exists()
    assert "Alignment" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["pretrain", "alignment", "--help"])
    assert ended.value.code == 0
    assert "--uniformity X" in capsys.readouterr().out


def test_the_example_evaluation_runs(added, monkeypatch, request):
    module = added("src/tinyseed/evaluation/centroid.py")
    monkeypatch.setattr(evaluations, "EVALUATIONS", (*evaluations.EVALUATIONS, module.CENTROID))
    assert run_tests(added("tests/evaluation/test_centroid.py"), request) == 1


def test_the_example_source_opens(added, monkeypatch, tmp_path_factory):
    module = added("src/tinyseed/data/tables.py")
    monkeypatch.setattr(sources, "FORMATS", (*sources.FORMATS, module.CSV))
    tests = added("tests/data/test_tables.py")
    tests.test_images_and_labels_of_a_csv_file(tmp_path_factory.mktemp("csv"))
    tests.test_a_csv_file_without_the_columns_is_refused(tmp_path_factory.mktemp("csv"))
