"""What a user types and sees: exit codes, one-line errors, help."""

import json
import subprocess
import sys
import textwrap

import pytest

from tinyseed import cli


def typed(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out, shown.err


def test_the_overview_begins_with_a_runnable_example(capsys):
    for arguments in ((), ("--help",)):
        code, out, _ = typed(capsys, *arguments)
        assert code == 0
        assert out.startswith("tinyseed distill --data")


@pytest.mark.parametrize(
    ("verb", "begins"),
    [
        (("distill",), "usage: tinyseed distill --data"),
        (("distill", "--method", "regress"), "usage: tinyseed distill --method regress --data"),
        (("distill", "--method=compress"), "usage: tinyseed distill --method compress --data"),
        (("pretrain", "moco-v1"), "usage: tinyseed pretrain moco-v1 --data"),
        (("pretrain", "moco-v2"), "usage: tinyseed pretrain moco-v2 --data"),
        (("pretrain", "simclr"), "usage: tinyseed pretrain simclr --data"),
        (("pretrain", "swav"), "usage: tinyseed pretrain swav --data"),
        (("evaluate", "knn"), "usage: tinyseed evaluate knn --model"),
        (("evaluate", "linear"), "usage: tinyseed evaluate linear --model"),
        (("evaluate", "semi"), "usage: tinyseed evaluate semi --model"),
        (("evaluate", "transfer"), "usage: tinyseed evaluate transfer --model"),
        (("evaluate", "retention"), "usage: tinyseed evaluate retention --student"),
        (("evaluate", "detect"), "usage: tinyseed evaluate detect --model"),
        (("demo",), "usage: tinyseed demo"),
    ],
)
def test_help_of_each_verb_shows_an_example_first(capsys, verb, begins):
    code, out, _ = typed(capsys, *verb, "--help")
    assert code == 0
    assert out.startswith(begins)
    assert "--seed" in out or verb[0] == "evaluate"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("destill",),
            "verb: destill: give one of distill, pretrain, evaluate, recipes, teachers, cache, demo",
        ),
        (("pretrain", "byol"), "method: byol: give one of moco-v1, moco-v2, simclr, swav"),
        (("distill", "--method", "byol"), "--method: byol: give one of seed, regress, kmeans, "),
        (("distill", "--method", "--lr", "1"), "--method: expected at least one argument"),
        (("distill", "--loss=l2"), "--loss: l2: is a flag of --method regress or contrastive"),
        (("distill", "--method", "seed", "seed"), "--method: seed seed: give each value once"),
        (
            ("distill", "--method", "regress", "--data", "x", "--queue-size", "8"),
            "--queue-size: 8: is a flag of --method seed or online-clustering or contrastive or ",
        ),
        (
            ("distill", "--data", "x", "--no-student-queue", "--lr", "1"),
            "--no-student-queue: given: is a flag of --method compress",
        ),
        (
            ("distill", "--method", "seed", "regress", "--data", "x", "--quue-size", "8"),
            "--quue-size: 8: unknown flag; did you mean --queue-size?",
        ),
        (
            ("distill", "--method", "seed", "regress", "--recipe", "simreg"),
            "--recipe: simreg: is for one method; give one --method",
        ),
        (
            ("distill", "--recipe", "simreg"),
            "--recipe: simreg: is for tinyseed distill --method regress; here give one of seed-imagenet",
        ),
        (("evaluate", "magic"), "evaluation: magic: give one of knn"),
        (("distill",), "--data: missing: give it, as in: tinyseed distill"),
        (
            ("distill", "--data", "x", "--batch-sise", "3"),
            "--batch-sise: 3: unknown flag; did you mean --batch-size?",
        ),
        (
            ("distill", "--data", "/nowhere", "--teacher", "t", "--student", "resnet18", "--out", "o"),
            "--data: /nowhere: ",
        ),
    ],
)
def test_mistakes_exit_with_2_and_one_line(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith(f"tinyseed: error: {told}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_pretrain_alone_lists_the_methods(capsys):
    from tinyseed.api import PRETRAIN_METHODS

    code, out, _ = typed(capsys, "pretrain")
    assert code == 0
    assert out.startswith("tinyseed pretrain moco-v2 --data")
    assert all(f"\n  {name}" in out for name in PRETRAIN_METHODS)


def test_the_help_of_distill_lists_the_methods_and_shows_the_flags_of_the_one_that_is_named(capsys):
    from tinyseed.api import DISTILL_METHODS

    _, of_seed, _ = typed(capsys, "distill", "--help")
    assert all(f"\n  {name} " in of_seed for name in DISTILL_METHODS)
    assert "--teacher-temperature X" in of_seed
    _, of_regress, _ = typed(capsys, "distill", "--method", "regress", "--help")
    assert "--loss l2|cosine" in of_regress
    assert "--teacher-temperature" not in of_regress


def test_several_methods_take_the_flags_that_they_have(capsys, monkeypatch):
    made = {}
    monkeypatch.setattr("tinyseed.engine.train.train_students", lambda runs: made.update(runs) or {})
    common = ("distill", "--data", "d", "--teacher", "t", "--student", "s", "--out", "o")
    given = ("--queue-size", "8", "--loss=cosine", "--grid", "lr=0.1,1", "teacher_temperature=0.1")
    code, _, err = typed(capsys, *common, "--method", "seed", "regress", *given)
    assert code == 0, err
    assert {name: str(of_run.out) for name, of_run in made.items()} == {
        "seed,lr=0.1,teacher_temperature=0.1": "o/seed,lr=0.1,teacher_temperature=0.1",
        "seed,lr=1.0,teacher_temperature=0.1": "o/seed,lr=1.0,teacher_temperature=0.1",
        "regress,lr=0.1": "o/regress,lr=0.1",
        "regress,lr=1.0": "o/regress,lr=1.0",
    }
    first, *_, last = made.values()
    assert (first.queue_size, first.teacher_temperature, last.loss) == (8, 0.1, "cosine")


def test_a_teacher_that_is_not_there_is_a_missing_path_or_an_unknown_name(capsys, photos, tmp_path):
    common = ("distill", "--data", str(photos), "--student", "resnet18", "--out", str(tmp_path / "o"))
    common += ("--batch-size", "8")
    code, _, err = typed(capsys, *common, "--teacher", "runs/nothing")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("tinyseed: error: --teacher: runs/nothing: ")
    code, _, err = typed(capsys, *common, "--teacher", "resnet181")
    assert (code, err.count("\n")) == (2, 1)
    assert "resnet18" in err.split("resnet181", 1)[1]


def test_distill_then_evaluate_from_the_command_line(capsys, photos, tmp_path):
    run = tmp_path / "run"
    code, out, err = typed(
        capsys,
        *(
            "distill",
            "--data",
            str(photos),
            "--out",
            str(run),
            "--teacher",
            "resnet10t",
            "--teacher-weights",
            "random",
        ),
        *("--student", "mobilenetv3_small_050", "--batch-size", "8", "--image-size", "32", "--epochs", "1"),
        *("--workers", "0", "--precision", "32"),
    )
    assert code == 0, err
    assert out.splitlines() == [str(run / "student.safetensors"), str(run / "report.html")]
    assert "k-NN" in err
    files = {path.name for path in run.iterdir()}
    expected = {"config.json", "metrics.jsonl", "checkpoints", "student.safetensors", "projector.safetensors"}
    assert expected | {"lineage.json", "summary.json", "report.html", "quarantine.jsonl"} <= files
    code, out, err = typed(
        capsys,
        *(
            "evaluate",
            "knn",
            "--model",
            str(run),
            "--train-data",
            str(photos),
            "--test-data",
            str(photos),
            "--k",
            "1",
            "5",
        ),
    )
    assert code == 0, err
    assert "leave-one-out" in out  # no image finds itself
    report = json.loads((run / "evaluate-knn.json").read_text())
    assert [row["k"] for row in report["results"]] == [1, 5]
    assert report["image_size"] == 32
    code, _, err = typed(
        capsys,
        "evaluate",
        "knn",
        "--model",
        str(run),
        "--train-data",
        str(photos / "disc"),
        "--test-data",
        str(photos),
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "--train-data" in err
    assert "has no labels" in err


def test_help_and_recipes_need_no_torch():
    """Importing torch takes seconds; the help of every verb and the recipes answer without it."""
    program = """
        import io, sys
        from contextlib import redirect_stdout, suppress
        from tinyseed import cli
        from tinyseed.evaluations import EVALUATIONS
        from tinyseed.methods.catalog import distill_methods, pretrain_methods
        verbs = [[], ["distill"], ["pretrain"], ["evaluate"], ["recipes"], ["teachers"], ["demo"]]
        verbs += [["pretrain", name] for name in pretrain_methods()]
        verbs += [["distill", "--method", name] for name in distill_methods()]
        verbs += [["evaluate", spec.name] for spec in EVALUATIONS]
        for verb in [*([*verb, "--help"] for verb in verbs), ["recipes"], ["recipes", "seed-imagenet"]]:
            with redirect_stdout(io.StringIO()), suppress(SystemExit):
                cli.main(verb)
            heavy = {"torch", "torchvision", "timm", "transformers", "pyarrow"} & sys.modules.keys()
            assert not heavy, (verb, heavy)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
