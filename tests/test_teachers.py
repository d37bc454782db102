"""`tinyseed teachers FILE`, and distillation from a public checkpoint, as they are typed."""

import json

import pytest
import torch
from torchvision import models

from tinyseed.cli import main


@pytest.fixture(scope="module")
def moco(tmp_path_factory):
    """A MoCo-v2 checkpoint of a ResNet-18 with random weights."""
    torch.manual_seed(0)
    network = models.resnet18()
    network.fc = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 24))
    state = {"module.queue": torch.zeros(24, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    for encoder in ("encoder_q", "encoder_k"):
        state |= {f"module.{encoder}.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("moco") / "moco_v2_like.pth.tar"
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


def typed(capsys, *arguments):
    with pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return exited.value.code, captured.out, captured.err


def test_a_file_is_described(capsys, moco):
    code, out, err = typed(capsys, "teachers", moco)
    assert (code, err) == (0, "")
    for line in (
        "method       MoCo v2",
        "architecture torchvision/resnet18",
        "backbone     512 features",
        "head         mlp, to 24",
        "epochs       200",
        "images       224 px, bilinear",
        "used         backbone 120, head 4 (tensors)",
        "unused       queue 1, queue_ptr 1, encoder_k 124 (tensors)",
    ):
        assert f"  {line}\n" in out


def test_json_says_the_same(capsys, moco):
    code, out, _ = typed(capsys, "teachers", moco, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["method"], told["dim"], told["epochs"], told["size"]) == (
        "MoCo v2",
        24,
        200,
        moco.stat().st_size,
    )
    assert told["input"]["std"] == [0.229, 0.224, 0.225]
    assert told["unused"] == {"queue": 1, "queue_ptr": 1, "encoder_k": 124}


def test_names_are_described(capsys):
    code, out, _ = typed(capsys, "teachers", "resnet10t")
    assert code == 0
    assert "architecture resnet10t" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.pth"], "FILE: gone.pth: no such file or folder"),
        (["resnet81"], "FILE: resnet81: unknown model; did you mean"),
        (["--json"], "--json: given: the file comes first"),
        (["FILE", "--jason"], "--jason: given: unknown flag; did you mean --json?"),
        (["FILE", "--teacher-arch", "resnet10t"], "does not fit resnet10t, nothing was loaded"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(capsys, moco, arguments, told):
    arguments = [moco if each == "FILE" else each for each in arguments]
    code, out, err = typed(capsys, "teachers", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tinyseed: error: ")
    assert told in err
    assert err.count("\n") == 1


def test_a_public_checkpoint_teaches(capsys, moco, photos, tmp_path):
    out = tmp_path / "run"
    code, _, err = typed(
        capsys, "distill", "--data", photos, "--teacher", moco, "--student", "resnet10t", "--out", out,
        "--epochs", 1, "--batch-size", 24, "--image-size", 32, "--queue-size", 32,
        "--workers", 0, "--precision", 32, "--devices", 1,
    )  # fmt: skip
    assert code == 0, err
    teacher = json.loads((out / "lineage.json").read_text())["teacher"]
    assert (teacher["given"], teacher["dim"]) == (str(moco), 24)
    assert json.loads((out / "config.json").read_text())["teacher_output"] == "auto"
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in steps) == 2


def test_a_public_checkpoint_is_evaluated(capsys, moco, photos):
    code, out, err = typed(capsys, "evaluate", "knn", "--model", moco, "--train-data", photos, "--test-data", photos,
                           "--image-size", 32, "--k", 3)  # fmt: skip
    assert code == 0, err
    assert "60 test images, 60 training images" in out


def test_a_part_of_a_checkpoint_teaches_under_a_contract_of_its_own(capsys, moco, photos, tmp_path):
    out = tmp_path / "run"
    common = [
        "distill", "--data", photos, "--teacher", moco, "--student", "resnet10t", "--out", out, "--epochs", 1,
        "--batch-size", 24, "--image-size", 32, "--queue-size", 32, "--workers", 0, "--precision", 32, "--devices", 1,
    ]  # fmt: skip
    contract = [
        "--teacher-prefix", "encoder_k", "--teacher-mean", 0.5, 0.4, 0.3, "--teacher-std", 0.1, 0.2, 0.3,
        "--teacher-interpolation", "bicubic",
    ]  # fmt: skip
    code, _, err = typed(capsys, *common, *contract)
    assert code == 0, err
    teacher = json.loads((out / "lineage.json").read_text())["teacher"]
    assert (teacher["mean"], teacher["std"]) == ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
    assert teacher["interpolation"] == "bicubic"
    config = json.loads((out / "config.json").read_text())
    assert (config["teacher_prefix"], config["teacher_mean"]) == ("encoder_k", [0.5, 0.4, 0.3])
    code, _, err = typed(capsys, *common, *contract[:-6], "--resume")
    assert code == 2
    assert "--teacher-" in err
    code, _, err = typed(capsys, *common[:-2], "--teacher-std", 0, 1, 1)
    assert (code, "--teacher-std: 0.0: give a number above 0" in err) == (2, True)


def test_a_part_is_evaluated(capsys, moco, photos):
    flags = ["--model-prefix", "encoder_k", "--model-mean", 0, 0, 0, "--model-std", 1, 1, 1]
    code, _, err = typed(capsys, "evaluate", "knn", "--model", moco, "--train-data", photos, "--test-data", photos,
                         "--image-size", 32, "--k", 3, *flags)  # fmt: skip
    assert code == 0, err
    code, _, err = typed(capsys, "evaluate", "knn", "--model", moco, "--train-data", photos, "--test-data", photos,
                         "--model-prefix", "nope")  # fmt: skip
    assert code == 2
    assert "--model-prefix: nope: " in err


def test_what_it_teaches_is_chosen(capsys, moco, photos, tmp_path):
    common = [
        "distill",
        "--data",
        photos,
        "--student",
        "resnet10t",
        "--out",
        tmp_path / "run",
        "--image-size",
        32,
    ]
    code, _, err = typed(capsys, *common, "--batch-size", 24, "--teacher", "resnet10t", "--teacher-weights", "random",
                         "--teacher-output", "head", "--devices", 1, "--workers", 0)  # fmt: skip
    assert code == 2
    assert "--teacher-output: head: resnet10t has no head" in err
