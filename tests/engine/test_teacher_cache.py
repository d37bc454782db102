"""Runs whose teacher's vectors are kept: filling and replay are the same run, and a replay needs no teacher."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyseed.checkpoints import known
from tinyseed.checkpoints.load import load_teacher
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.data.shards import open_store
from tinyseed.data.sources import open_source
from tinyseed.engine.runs import open_runs
from tinyseed.engine.train import train
from tinyseed.errors import InputError, RunError
from tinyseed.files import cache_folder
from tinyseed.methods.cached import CachedTargets
from tinyseed.methods.seed import SeedSettings
from tinyseed.methods.views import FreshTargets, Views
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.models.teacher import Teacher

SMALL = {"epochs": 4, "batch_size": 12, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    for name, seed in (("one", 1), ("other", 2)):
        backbone = build_backbone("resnet10t", image_size=32, seed=seed)
        head = build_projector("mlp", backbone.width, 16, 32, seed=seed)
        save_encoder(folder / name, Encoder(backbone, head), file="encoder.safetensors")
    return folder


def settings(photos, teachers, out, **changes) -> SeedSettings:
    given = {"teacher": str(teachers / "one"), "student": "resnet10t", "queue_size": 24, "cache_views": 2}
    data = {"data": (str(photos),), "val_data": (str(photos),)}
    return SeedSettings(out=out, **(data | given | SMALL | changes))


def run(*arguments, **changes) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train; returns the losses, and the state of the student."""
    given = settings(*arguments, **changes)
    train(given, quiet=True)
    lines = map(json.loads, (given.out / "metrics.jsonl").read_text().splitlines())
    state = torch.load(given.out / "checkpoints" / "last.ckpt", weights_only=True)
    return [line["loss"] for line in lines if "loss" in line], state["module"]


def same(one, other) -> bool:
    return one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.fixture
def no_teacher(monkeypatch):
    """From now on nobody may load a teacher, or call one that is loaded."""

    def forbid() -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the teacher was asked")

        monkeypatch.setattr(known, "load_teacher", refuse)
        monkeypatch.setattr(Teacher, "_network", refuse)
        monkeypatch.setattr(known.DeferredTeacher, "_network", refuse)

    return forbid


def test_a_replay_is_the_same_run_without_the_teacher(photos, teachers, tmp_path, no_teacher):
    filled = run(photos, teachers, tmp_path / "a")
    no_teacher()
    assert same(run(photos, teachers, tmp_path / "b"), filled)
    # other students, seeds and temperatures need it as little
    run(photos, teachers, tmp_path / "c", student="mobilenetv3_small_050", seed=5, teacher_temperature=0.1)
    with pytest.raises(AssertionError, match="the teacher was asked"):  # a third view is not there
        run(photos, teachers, tmp_path / "d", cache_views=3)


def test_a_larger_number_of_views_adds_to_them(photos, teachers, tmp_path, monkeypatch):
    run(photos, teachers, tmp_path / "a", epochs=2)
    seen: list[int] = []
    ask = Teacher.__call__
    monkeypatch.setattr(
        Teacher, "__call__", lambda self, images: (seen.append(len(images)), ask(self, images))[1]
    )
    run(photos, teachers, tmp_path / "b", cache_views=3)
    assert sum(seen) == 60  # the third view of each image; those of the monitor are kept elsewhere


def test_interrupted_filling_goes_on_and_is_the_same_run(photos, teachers, tmp_path):
    unbroken = run(photos, teachers, tmp_path / "a", cache=tmp_path / "one")
    run(photos, teachers, tmp_path / "b", cache=tmp_path / "two", epochs=1, lr=0.1)
    assert same(run(photos, teachers, tmp_path / "c", cache=tmp_path / "two"), unbroken)
    (shard,) = (tmp_path / "two" / "rows-0").glob("view-0001-*")
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)  # a row of the second view is damaged
    assert same(run(photos, teachers, tmp_path / "d", cache=tmp_path / "two"), unbroken)
    shutil.rmtree(tmp_path / "two")
    assert same(run(photos, teachers, tmp_path / "e", cache=tmp_path / "two"), unbroken)


def test_first_epochs_are_those_without_a_cache_up_to_float16(photos, teachers, tmp_path):
    kept, _ = run(photos, teachers, tmp_path / "a", epochs=2)
    fresh, _ = run(photos, teachers, tmp_path / "b", epochs=2, cache_views=None)
    assert kept != fresh
    np.testing.assert_allclose(kept, fresh, rtol=2e-2)  # rounding, seen through a temperature of 0.01
    assert kept[0] == pytest.approx(fresh[0], rel=1e-3)


def test_views_repeat_and_have_a_seed_of_their_own(photos, teachers, tmp_path):
    def pixels(epoch: int, **changes) -> bytes:
        given = settings(photos, teachers, tmp_path / "run", **changes)
        with open_runs({"": given}, quiet=True) as opened:
            request = next(opened.shared.plan.requests(0))
            batch = opened.views.batch(type(request)(epoch, np.arange(6)))
        shutil.rmtree(given.out)
        return batch.pixels[0].numpy().tobytes() + batch.draws[0].numbers.numpy().tobytes()

    first = pixels(0)
    assert pixels(2) == pixels(0, seed=3) == pixels(4, seed=9) == first
    assert first not in (pixels(1), pixels(0, view_seed=1))
    assert pixels(0, cache_views=None) == first  # seed 0
    assert first not in (pixels(2, cache_views=None), pixels(0, cache_views=None, seed=3))
    assert pixels(0, cache_views=None, seed=3, view_seed=0) == first


def test_a_cache_of_something_else_is_refused(photos, teachers, tmp_path):
    common = {"cache": tmp_path / "kept", "epochs": 1, "batch_size": 60}
    train(settings(photos, teachers, tmp_path / "a", **common), quiet=True)
    refused = {
        r"cache=.*another teacher \(.*one, [0-9a-f]{16}, not .*other, [0-9a-f]{16}\); give that": {
            "teacher": str(teachers / "other")
        },
        "another view_seed": {"view_seed": 1},
        "another views": {"crop_scale": (0.5, 1.0)},
        "another teacher ": {"teacher_output": "backbone"},
        "another precision": {"precision": "bf16"},
        "another teacher_input": {"teacher_image_size": 64},
    }
    for told, changes in refused.items():
        with pytest.raises(InputError, match=told) as caught:
            train(settings(photos, teachers, tmp_path / "b", **(common | changes)), quiet=True)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cache": Path("x"), "cache_views": None}, "cache=x: give `cache_views` beside it"),
        ({"cache_crops": True, "cache_views": None}, "cache_crops=True: give `cache_views`"),
        ({"cache_outputs": ("rows", "features"), "cache_views": None}, "give `cache_views`"),
        ({"cache_outputs": ("features",)}, "give rows, too"),
        ({"cache_views": 0}, "cache_views=0: give a number from 1"),
    ],
)
def test_settings_that_cannot_be_meant(photos, teachers, tmp_path, changes, told):
    with pytest.raises(InputError, match=told):
        settings(photos, teachers, tmp_path / "run", **changes).check()


def test_a_disk_that_is_too_small_is_refused_before_training(photos, teachers, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        InputError, match=r"cache=.*needs 4\.3 kB, and its disk has 1\.0 kB free; .*`cache_views`"
    ):
        train(settings(photos, teachers, tmp_path / "run"), quiet=True)


def test_a_disk_that_becomes_full_is_said_once_and_changes_nothing(
    photos, teachers, tmp_path, monkeypatch, capfd
):
    expected = run(photos, teachers, tmp_path / "a", cache=tmp_path / "one")
    write, left = os.pwrite, [30]

    def full(handle: int, content: bytes, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, content, offset)

    monkeypatch.setattr(
        os, "pwrite", lambda *each: full(*each) if len(each[1]) != 4 or left[0] < 0 else write(*each)
    )
    given = settings(photos, teachers, tmp_path / "b", cache=tmp_path / "two")
    train(given)
    lines = map(json.loads, (given.out / "metrics.jsonl").read_text().splitlines())
    assert [line["loss"] for line in lines if "loss" in line] == expected[0]
    shown = capfd.readouterr().err
    assert shown.count("No space left on device") == 1
    assert "teacher cache: 2 views of 60 images, 4.3 kB in" in shown


def test_all_outputs_are_computed_in_one_pass_and_replayed(photos, teachers, tmp_path):
    teacher = load_teacher(teachers / "one")
    passes: list[int] = []
    ask = teacher.outputs
    teacher.outputs = lambda images, wanted: (passes.append(len(images)), ask(images, wanted))[1]  # pyright: ignore
    store = open_store(tmp_path / "store", {"teacher": teacher.digest}, {})
    images = (torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)
    outputs = ("rows", "features", "patches")

    def asked(places: slice) -> list[torch.Tensor]:
        targets = CachedTargets(teacher, None, store, outputs)
        views = Views((images[0][places],), torch.arange(10, 16)[places], epoch=1)
        return [targets(views), *(targets.of(views, 0, output) for output in outputs[1:])]

    asked(slice(0, 2))
    first = asked(slice(0, 6))
    again = asked(slice(0, 6))
    assert passes == [2, 4]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    normalized = Views(images).seen(0, teacher.input)
    features, rows = teacher.both(normalized)
    for kept, fresh in zip(first, (rows, features, teacher.patches(normalized)), strict=True):
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept, fresh, rtol=2e-3, atol=2e-3)
    assert first[0].norm(dim=1).allclose(torch.ones(6), atol=1e-6)
    assert first[2].shape == (6, 1, 512)
    fresh_targets = FreshTargets(load_teacher(teachers / "one"))
    views = Views(images)
    torch.testing.assert_close(fresh_targets.of(views, 0, "features"), features)
    # features that are added to a cache of rows are computed for all images
    only_rows = open_store(tmp_path / "rows", {"teacher": teacher.digest}, {})
    addressed = Views(images, torch.arange(6), epoch=0)
    rows_first = CachedTargets(teacher, None, only_rows, ("rows",))(addressed)
    added = CachedTargets(teacher, None, only_rows, ("rows", "features"))
    assert torch.equal(added(Views(images, torch.arange(6), epoch=0)), rows_first)
    assert only_rows.find("features-0").read(0, np.arange(6))[1].all()


def test_patches_of_a_transformer_are_its_tokens(photos, tmp_path):
    teacher = load_teacher("test_vit", weights="random", image_size=32)
    images = torch.rand(2, 3, 32, 32)
    assert teacher.patches(images).shape == (2, 4, 64)
    plain = load_teacher("torchvision/squeezenet1_1", weights="random", image_size=64)
    with pytest.raises(InputError, match=r"cache_outputs=patches: .*squeezenet.* does not give them"):
        plain.patches(torch.rand(1, 3, 64, 64))


def test_kept_crops_replay_without_reading_an_image(photos, teachers, tmp_path, monkeypatch):
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    (data / "disc" / "03.jpg").write_bytes(b"not an image")
    common = {"data": (str(data),), "val_data": (str(photos),), "cache_crops": True}
    plain = run(data, teachers, tmp_path / "a", **(common | {"cache_crops": False}))
    assert same(run(data, teachers, tmp_path / "b", **common), plain)
    source, read = type(open_source([str(data)])), []
    before = source.read
    monkeypatch.setattr(source, "read", lambda self, at: (read.append(self.name(at)), before(self, at))[1])
    given = settings(data, teachers, tmp_path / "c", **common)
    with open_runs({"": given}, quiet=True) as opened:
        del read[:]
        views = opened.views
        batches = [
            views.batch(request)
            for request, _ in zip(opened.shared.plan.requests(0), range(20), strict=False)
        ]
    assert {Path(name).name for name in read} == {"03.jpg"}
    assert {record.name for batch in batches for record in batch.bad} == set(read)
    shutil.rmtree(given.out, ignore_errors=True)
    assert same(run(data, teachers, tmp_path / "c", **common), plain)
    assert [
        (tmp_path / each / "quarantine.jsonl").read_text()
        == (tmp_path / "a" / "quarantine.jsonl").read_text()
        for each in "bc"
    ] == [True, True]


def test_what_is_known_of_a_teacher_is_what_it_is(teachers, monkeypatch):
    from tinyseed.models.spec import ModelSpec

    spec = ModelSpec(teachers / "one", image_size=32)
    loaded = known.known_teacher(spec)
    assert type(loaded) is Teacher
    deferred = known.known_teacher(spec).to("cpu").channels_last()
    assert isinstance(deferred, known.DeferredTeacher)
    for name in ("spec", "digest", "input", "mean", "std", "dim", "width", "parameters_count", "gives"):
        assert getattr(deferred, name) == getattr(loaded, name), name
    assert not deferred.loaded
    images = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):  # loading must not be a part of the step
        deferred(images)
    torch.testing.assert_close(deferred(images), loaded(images))
    assert deferred.loaded


def test_a_teacher_that_changes_after_the_set_up_ends_the_run(teachers, tmp_path):
    from tinyseed.models.spec import ModelSpec

    folder = tmp_path / "teacher"
    shutil.copytree(teachers / "one", folder)
    spec = ModelSpec(folder, image_size=32)
    known.known_teacher(spec)
    deferred = known.known_teacher(spec)
    for file in (teachers / "other").iterdir():
        shutil.copy(file, folder / file.name)
    with pytest.raises(
        RunError, match="are not those that were there when the run was set up; start it again"
    ):
        deferred(torch.rand(2, 3, 32, 32))
    assert not isinstance(known.known_teacher(spec), known.DeferredTeacher)  # its files are others
    assert (cache_folder() / "teachers").is_dir()


def test_the_place_may_change_on_resume_and_the_views_may_not(photos, teachers, tmp_path):
    out = tmp_path / "run"
    given = settings(photos, teachers, out, epochs=2, cache=tmp_path / "one")
    train(given, quiet=True)
    (out / "summary.json").unlink()
    with pytest.raises(InputError, match=r"cache_views=3: the run in .* has 2; give that"):
        train(given.replaced(resume=True, cache_views=3), quiet=True)
    train(given.replaced(resume=True, cache=tmp_path / "two"), quiet=True)
