"""torchvision's data sets as sources: the same images and labels as torchvision gives, from files of its layout."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinyseed
from tinyseed.data.base import labels_as
from tinyseed.data.decode import decode
from tinyseed.data.named import Named
from tinyseed.data.sources import open_source
from tinyseed.errors import InputError

SUN_CLASSES = ["/a/abbey", "/a/airport_terminal", "/b/bar"]


def picture(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> Path:
    """CIFAR-10's files with four images each; torchvision would miss its checksums."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for part, name in enumerate(names):
        data = np.stack([picture(10 * part + at).transpose(2, 0, 1).reshape(-1) for at in range(4)])
        content = {"data": data, "labels": [(part + at) % 10 for at in range(4)]}
        (folder / name).write_bytes(pickle.dumps(content))
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return tmp_path


@pytest.fixture
def sun(tmp_path) -> Path:
    folder = tmp_path / "SUN397"
    for number, name in enumerate(SUN_CLASSES):
        (folder / name[1:]).mkdir(parents=True)
        for at in range(3):
            Image.fromarray(picture(10 * number + at)).save(folder / name[1:] / f"sun_{number}{at}.jpg")
    (folder / "ClassName.txt").write_text("\n".join(SUN_CLASSES) + "\n", encoding="utf-8")
    for side, numbers in (("Training", (0, 1)), ("Testing", (2,))):
        lines = [f"{name}/sun_{at}{n}.jpg" for at, name in enumerate(SUN_CLASSES) for n in numbers]
        (folder / f"{side}_01.txt").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("torchvision:CIFAR10", ("CIFAR10", "", "data")),
        ("torchvision:CIFAR10:test", ("CIFAR10", "test", "data")),
        ("torchvision:SUN397@/big/sets", ("SUN397", "", "/big/sets")),
        ("torchvision:SUN397:train-02@a@b c", ("SUN397", "train-02", "a@b c")),
    ],
)
def test_parts_of_a_spec(spec, parts):
    assert Named.of(spec) == parts


def test_arrays_come_as_the_very_pixels(cifar):
    train = open_source([f"torchvision:CIFAR10:train@{cifar}"])
    test = open_source([f"torchvision:CIFAR10:test@{cifar}"])
    assert (len(train), len(test)) == (20, 4)
    assert train.classes[:2] == ("airplane", "automobile")
    assert train.labels[:6].tolist() == [0, 1, 2, 3, 1, 2]
    assert test.labels.tolist() == [5, 6, 7, 8]
    np.testing.assert_array_equal(np.asarray(decode(test.read(2))), picture(52))
    assert test.name(2) == "torchvision:CIFAR10:test#2"
    assert train.fingerprint != test.fingerprint
    with pytest.raises(IndexError):
        test.read(4)


def test_without_a_split_it_is_the_sets_own_first(cifar):
    assert len(open_source([f"torchvision:CIFAR10@{cifar}"])) == 20


def test_a_worker_process_opens_it_again(cifar):
    source = open_source([f"torchvision:CIFAR10:test@{cifar}"])
    content = pickle.dumps(source)
    assert len(content) < 500
    again = pickle.loads(content)
    assert again.read(3) == source.read(3)
    assert again.fingerprint == source.fingerprint


def test_gray_images_stay_gray_and_numbers_name_their_classes(tmp_path):
    from torchvision.datasets import SVHN

    class Digits(SVHN):
        def __init__(self, root, split="train", download=False):
            super(SVHN, self).__init__(root)
            self.labels = np.array([3, 0])
            self.split = split

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Image.fromarray(picture(index)[..., 0]), int(self.labels[index])

    import torchvision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.datasets, "SVHN", Digits)
        source = open_source([f"torchvision:SVHN:test@{tmp_path}"])
        assert source.classes == ("0", "1", "2", "3")
        np.testing.assert_array_equal(np.asarray(decode(source.read(1)))[..., 2], picture(1)[..., 0])


def test_files_are_handed_on_unread(sun):
    source = open_source([f"torchvision:SUN397@{sun}"])
    assert len(source) == 9
    assert source.classes == ("abbey", "airport_terminal", "bar")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    file = sun / "SUN397" / "b" / "bar" / "sun_21.jpg"
    assert source.name(7) == str(file)
    assert source.read(7) == file.read_bytes()


def test_the_published_partitions_of_sun397(sun):
    train, test = (open_source([f"torchvision:SUN397:{split}@{sun}"]) for split in ("train", "test-01"))
    assert [Path(train.name(at)).name for at in range(6)] == [
        f"sun_{c}{n}.jpg" for c in range(3) for n in (0, 1)
    ]
    assert [Path(test.name(at)).name for at in range(3)] == ["sun_02.jpg", "sun_12.jpg", "sun_22.jpg"]
    assert labels_as(test, train.classes).tolist() == [0, 1, 2]


def test_sets_of_the_image_folder_kind_keep_classes_of_one_name_apart(tmp_path, monkeypatch):
    import torch
    from torchvision.datasets import ImageNet

    for wnid in ("n01", "n02"):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        Image.fromarray(picture(1)).save(tmp_path / "val" / wnid / "a.JPEG")
    torch.save(({"n01": ("crane",), "n02": ("crane",)}, ["n01", "n02"]), tmp_path / "meta.bin")
    monkeypatch.setattr(ImageNet, "parse_archives", lambda self: None)
    source = open_source([f"torchvision:ImageNet:val@{tmp_path}"])
    assert source.classes == ("crane (0)", "crane (1)")
    assert source.labels.tolist() == [0, 1]
    assert source.read(1) == (tmp_path / "val" / "n02" / "a.JPEG").read_bytes()


def test_evaluations_take_it(cifar, tmp_path):
    report = tinyseed.evaluate(
        "knn",
        model="random:resnet10t",
        train_data=f"torchvision:CIFAR10:train@{cifar}",
        test_data=f"torchvision:CIFAR10:test@{cifar}",
        k=3,
        image_size=32,
        out=tmp_path / "out",
    )
    assert report.results[0]["k"] == 3


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("torchvision:", "write torchvision:NAME"),
        ("torchvision:CIFAR10:test:x", "write torchvision:NAME"),
        ("torchvision:CIFAR11", "CIFAR11: is not a data set of torchvision"),
        ("torchvision:VisionDataset", "is not a data set of torchvision"),
        ("torchvision:FakeData", "is not a data set of torchvision"),
        ("torchvision:CIFAR10:val@.", "CIFAR10:val: its splits are train and test"),
        ("torchvision:EuroSAT:train@.", "this set has no splits"),
        ("torchvision:SUN397:val@.", "this set has no splits"),
        ("torchvision:DTD:dev@.", r"Unknown value 'dev' for argument split"),
        (
            "torchvision:CIFAR100:test@here",
            r"is not in here: run torchvision.datasets.CIFAR100\('here', train=False, download=True\)",
        ),
        ("torchvision:SUN397", r"is not in data: run torchvision.datasets.SUN397\('data', download=True\)"),
        ("torchvision:ImageNet:val@here", "is not in here"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(tmp_path, monkeypatch, spec, remedy):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=remedy) as caught:
        open_source([spec])
    assert str(caught.value).startswith(("torchvision:", f"{spec.split(':')[1]}: "))
    assert "\n" not in str(caught.value)


def test_a_missing_or_unfitting_partition(sun):
    with pytest.raises(InputError, match=r"put Training_07.txt of Partitions.zip into"):
        open_source([f"torchvision:SUN397:train-07@{sun}"])
    (sun / "SUN397" / "a" / "abbey" / "sun_02.jpg").unlink()
    with pytest.raises(InputError, match="1 of its 3 images are not in"):
        open_source([f"torchvision:SUN397:test@{sun}"])


def test_a_set_without_classes_is_refused(tmp_path):
    from torchvision.datasets import VOCDetection  # (targets are annotations)

    base = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / name).mkdir(parents=True)
    Image.fromarray(picture(0)).save(base / "JPEGImages" / "a.jpg")
    (base / "Annotations" / "a.xml").write_text("<annotation><object/></annotation>", encoding="utf-8")
    (base / "ImageSets" / "Main" / "train.txt").write_text("a\n", encoding="utf-8")
    assert len(VOCDetection(tmp_path)) == 1
    with pytest.raises(InputError, match="a classification set is needed"):
        open_source([f"torchvision:VOCDetection@{tmp_path}"])
