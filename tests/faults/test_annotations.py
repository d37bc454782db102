"""Annotations as labeling tools, converters and accidents leave them, in COCO's and VOC's layout."""

import codecs
import copy
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tinyseed.cli import main
from tinyseed.detection import trial
from tinyseed.detection.coco import read_coco
from tinyseed.detection.detector import build_detector
from tinyseed.detection.masks import compress, decompress
from tinyseed.detection.score import average_precision
from tinyseed.detection.voc import read_voc
from tinyseed.errors import InputError

tool = pytest.importorskip("pycocotools.mask")
faults = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("mutate_annotations.py"))))
SIDE = faults.SIDE
NAN = float("nan")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """For every test here."""


@pytest.fixture
def coco(tmp_path):
    """A COCO folder of four images, one object in each; `change` edits the document or returns the file's bytes."""

    def make(change=lambda document: None, split="train"):
        if not (tmp_path / split).is_dir():
            faults.make_images(tmp_path / split)
            (tmp_path / "annotations").mkdir(exist_ok=True)
        document = faults.coco_document()
        data = change(document)
        file = tmp_path / f"annotations/instances_{split}.json"
        file.write_bytes(data if isinstance(data, bytes) else json.dumps(document).encode())
        return tmp_path

    return make


@pytest.fixture
def voc(tmp_path):
    """A VOC folder of two images of two objects each; the first annotation is given as fields or as bytes."""

    def make(first=None, listed=b"0\n1\n"):
        document = faults.voc_document() if first is None else first
        data = document if isinstance(document, bytes) else faults.as_xml("annotation", document).encode()
        for name in ("Annotations", "ImageSets/Main"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        if not (tmp_path / "JPEGImages").is_dir():
            faults.make_images(tmp_path / "JPEGImages")
        (tmp_path / "Annotations/0.xml").write_bytes(data)
        (tmp_path / "Annotations/1.xml").write_text(faults.as_xml("annotation", faults.voc_document()))
        (tmp_path / "ImageSets/Main/trainval.txt").write_bytes(listed)
        return tmp_path

    return make


def read(folder, **more):
    return read_coco(str(folder), "train", **more)


def objects(split):
    return [
        (image.path.name, one.box, split.classes[one.label])
        for image in split.images
        for one in image.instances
    ]


def refusal(action, *given):
    with pytest.raises(InputError) as refused:
        action(*given)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def first(**fields):
    return lambda document: document["annotations"][0].update(fields)


def without(name):
    return lambda document: document["annotations"][0].pop(name)


UNUSABLE = "objects dropped whose {} cannot be used"


@pytest.mark.parametrize(
    ("change", "kind", "why"),
    [
        (without("bbox"), UNUSABLE.format("bbox"), "0.jpg: annotations[0]: bbox is missing"),
        (first(bbox=None), UNUSABLE.format("bbox"), "bbox is null, not 4 finite numbers"),
        (
            first(bbox=[5, 6, None, 18]),
            UNUSABLE.format("bbox"),
            "bbox is [5, 6, None, 18], not 4 finite numbers",
        ),
        (first(bbox=["a", 6, 20, 18]), UNUSABLE.format("bbox"), "not 4 finite numbers"),
        (first(bbox=[5, 6, 20]), UNUSABLE.format("bbox"), "not 4 finite numbers"),
        (first(bbox=[5, 6, 20, 18, 1]), UNUSABLE.format("bbox"), "not 4 finite numbers"),
        (first(bbox=[5, 6, True, 18]), UNUSABLE.format("bbox"), "not 4 finite numbers"),
        (first(bbox=[5, NAN, 20, 18]), UNUSABLE.format("bbox"), "not 4 finite numbers"),
        (first(bbox=[5, 6, float("inf"), 18]), UNUSABLE.format("bbox"), "not 4 finite numbers"),
        (first(bbox=[5, 6, 10**400, 18]), UNUSABLE.format("bbox"), "not 4 finite numbers"),
        (
            first(bbox={"x": 5, "y": 6, "width": 20, "height": 18}),
            UNUSABLE.format("bbox"),
            "not 4 finite numbers",
        ),
        (first(bbox=[5, 6, -20, 18]), "boxes of negative size dropped", "0.jpg: annotations[0]"),
        (first(bbox=[5, 6, 0, 18]), "boxes of zero size dropped", "0.jpg: annotations[0]"),
        (
            first(bbox=[5, 6, 1e-9, 18]),
            "boxes thinner than 0.1 pixels in their image dropped",
            "annotations[0]",
        ),
        (first(bbox=[1e9, 6, 20, 18]), "boxes outside their image dropped", "annotations[0]"),
        (first(iscrowd="maybe"), UNUSABLE.format("iscrowd"), "iscrowd is 'maybe', neither 0 nor 1"),
        (first(iscrowd=[]), UNUSABLE.format("iscrowd"), "neither 0 nor 1"),
        (first(category_id=99), "objects of unknown categories dropped", "annotations[0]: category_id is 99"),
        (first(category_id=None), UNUSABLE.format("category_id"), "category_id is null"),
        (first(category_id=True), UNUSABLE.format("category_id"), "category_id is True"),
        (first(image_id=99), "objects of unknown images dropped", "annotations[0]: image_id is 99"),
        (first(image_id=[10]), UNUSABLE.format("image_id"), "annotations[0]: image_id is [10]"),
        (without("image_id"), UNUSABLE.format("image_id"), "image_id is missing"),
        (
            lambda d: d["annotations"].insert(0, None),
            UNUSABLE.format("entry"),
            "annotations[0]: entry is null",
        ),
        (lambda d: d["annotations"].insert(0, [1, 2]), UNUSABLE.format("entry"), "entry is [1, 2]"),
    ],
)
def test_an_object_that_cannot_be_used_is_dropped_and_counted(coco, change, kind, why):
    folder = coco(change)
    split = read(folder)
    assert split.issues.counts == {kind: 1}
    assert why in split.issues.first[kind]
    assert len(split.images) == 4
    assert split.boxes == 4 - (kind != UNUSABLE.format("entry"))


@pytest.mark.parametrize(
    ("change", "box", "crowd", "area"),
    [
        (first(bbox=["5", "6.0", "20", "18"]), (5, 6, 25, 24), False, 360),
        (first(bbox=[5, 6, 1e308, 1e308]), (5, 6, 48, 48), False, 360),
        (first(bbox=[-1e308, 6, 1.1e308, 18]), (0, 6, 48, 24), False, 360),
        (first(area=None), (5, 6, 25, 24), False, 360),
        (first(area=NAN), (5, 6, 25, 24), False, 360),
        (first(area=-5), (5, 6, 25, 24), False, 360),
        (first(area=1e12), (5, 6, 25, 24), False, 360),
        (first(area="many"), (5, 6, 25, 24), False, 360),
        (first(area="200.5"), (5, 6, 25, 24), False, 200.5),
        (first(iscrowd=None), (5, 6, 25, 24), False, 360),
        (first(iscrowd="0"), (5, 6, 25, 24), False, 360),
        (first(iscrowd="1"), (5, 6, 25, 24), True, 360),
        (first(iscrowd=True), (5, 6, 25, 24), True, 360),
        (first(iscrowd=1.0), (5, 6, 25, 24), True, 360),
        (without("iscrowd"), (5, 6, 25, 24), False, 360),
        (without("segmentation"), (5, 6, 25, 24), False, 360),
        (first(image_id="10", category_id=1.0, id=None), (5, 6, 25, 24), False, 360),
    ],
)
def test_odd_values_with_one_meaning_are_understood(coco, change, box, crowd, area):
    (one,) = read(coco(change)).images[0].instances
    assert (one.box, one.crowd, one.area, one.label) == (box, crowd, area, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"", "cannot be read as JSON (Expecting value"),
        (lambda d: json.dumps(d).encode()[:-20], "cannot be read as JSON"),
        (lambda d: b"\x80\xff{}", "cannot be read as JSON"),
        (lambda d: b"[" * 200_000, "cannot be read as JSON (maximum recursion depth"),
        (lambda d: b'{"images": ' + b"7" * 5000 + b"}", "cannot be read as JSON (Exceeds the limit"),
        (
            lambda d: json.dumps(d)[:-1].encode() + b', "annotations": []}',
            "the key 'annotations' stands twice",
        ),
        (lambda d: b"null", "it holds a NoneType, not an object with images, annotations and categories"),
        (lambda d: json.dumps(d["annotations"]).encode(), "it holds a list, not an object"),
        (lambda d: d.pop("annotations"), "lacks 'annotations'"),
        (lambda d: d.update(images=None), "'images' is not a list"),
        (lambda d: d.update(images={"10": d["images"][0]}), "'images' is not a list"),
        (lambda d: d.update(categories=5), "'categories' is not a list"),
        (lambda d: d.update(images=[]), "lists no images"),
        (lambda d: d["images"].append("3.jpg"), "images[4]: entry is '3.jpg', which has no fields"),
        (
            lambda d: d["images"][1].update(id=None),
            "images[1]: id is null, neither a whole number nor a text",
        ),
        (lambda d: d["images"][1].update(id=NAN), "images[1]: id is nan"),
        (lambda d: d["images"][1].update(id=True), "images[1]: id is True"),
        (lambda d: d["images"][1].update(id=10), "images[1]: id 10 is that of another image, too"),
        (lambda d: d["images"][1].update(id="10"), "images[1]: id 10 is that of another image, too"),
        (lambda d: d["images"][1].update(file_name=None), "images[1]: file_name is null, not a path"),
        (lambda d: d["images"][1].update(file_name=7), "images[1]: file_name is 7, not a path"),
        (lambda d: d["images"][1].update(file_name=""), "images[1]: file_name is '', not a path"),
        (lambda d: d["images"][1].update(file_name="../train/1.jpg"), "not a path within the image folder"),
        (lambda d: d["images"][1].update(file_name="/etc/hostname"), "not a path within the image folder"),
        (
            lambda d: d["images"][1].update(file_name="C:\\photos\\1.jpg"),
            "not a path within the image folder",
        ),
        (lambda d: d["images"][1].update(file_name="1.jpg\0"), "not a path within the image folder"),
        (lambda d: d["images"][1].update(file_name="\ud800.jpg"), "not a path within the image folder"),
        (
            lambda d: d["images"][1].update(file_name="x" * 300),
            "no such image (1 of 4 annotated images are missing)",
        ),
        (lambda d: d["categories"][0].update(name=None), "categories[0]: name is null, not a name"),
        (lambda d: d["categories"][0].update(name=" "), "categories[0]: name is ' ', not a name"),
        (lambda d: d["categories"][0].pop("id"), "categories[0]: id is missing"),
        (
            lambda d: d["categories"].append({"id": 2, "name": "van"}),
            "categories[2]: id 2 is that of another category",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(coco, change, message):
    folder = coco(change)
    assert message in refusal(read, folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_other_encodings_and_line_ends_are_read(coco, encoding):
    folder = coco()
    usual = objects(read(folder))
    coco(lambda document: json.dumps(document, indent=1).replace("\n", "\r\n").encode(encoding))
    assert objects(read(folder)) == usual
    assert len(usual) == 4


@pytest.mark.parametrize(
    ("size", "images"),
    [
        (("48", "48"), 4),
        ((48.0, 48), 4),
        ((None, None), 4),
        ((0, 0), 4),
        ((-48, 48), 4),
        (("wide", 48), 4),
        ((NAN, 10**400), 4),
        ((49, 48), 3),
        ((2**40, 2**40), 3),
    ],
)
def test_sizes_are_checked_where_the_annotations_have_them(coco, size, images):
    split = read(coco(lambda d: d["images"][0].update(width=size[0], height=size[1])))
    assert len(split.images) == images
    kinds = {"images of another size than annotated left out": 4 - images} if images < 4 else {}
    if images == 4 and size not in (("48", "48"), (48.0, 48)):
        kinds = {"images without a valid size in the annotations: the file's own is used": 1}
    assert split.issues.counts == kinds


def test_categories_are_ordered_by_value_and_joined_by_name(coco):
    def change(document):
        document["categories"] = [
            {"id": "10", "name": "van"},
            {"id": 2, "name": " bus\n"},
            {"id": "x", "name": "tram"},
            {"id": 1.0, "name": "car"},
            {"id": 0, "name": "car", "supercategory": "none"},
        ]
        document["annotations"][0]["category_id"] = 0
        document["annotations"][3]["category_id"] = 10

    split = read(coco(change))
    assert split.classes == ("car", "bus", "van", "tram")
    assert [name for *_, name in objects(split)] == ["car", "bus", "car", "van"]
    assert split.issues.lines() == ["1 categories of the same name joined (first: categories[4]: car)"]


def test_average_precision_of_a_class_that_two_categories_have(coco):
    """Roboflow's files have a root category 0, often with the name of the only class."""

    def change(document):
        document["categories"] = [{"id": 0, "name": "face"}, {"id": 1, "name": "face"}]
        for entry in document["annotations"]:
            entry["category_id"] = entry["id"] % 2

    split = read(coco(change))
    perfect = [
        {"image_id": number, "category_id": 1, "bbox": [5, 6, 20, 18], "score": 0.9} for number in range(1, 5)
    ]
    assert average_precision(split, perfect, "bbox").per_class == {"face": pytest.approx(100)}
    assert average_precision(split, perfect[:2], "bbox").per_class["face"] == pytest.approx(50, abs=1)


def test_entries_of_one_image_file_are_one_image(coco):
    """Some converters write an entry of `images` for each annotation."""

    def change(document):
        for entry in document["images"]:
            entry["file_name"] = "0.jpg" if entry["id"] < 13 else r".\1.jpg"

    split = read(coco(change))
    assert [(image.path.name, len(image.instances)) for image in split.images] == [("0.jpg", 3), ("1.jpg", 1)]
    assert split.issues.counts == {"further entries of the same image file joined with the first": 2}


def test_the_layouts_of_roboflow_and_label_studio(coco, tmp_path):
    folder = coco()
    (folder / "annotations/instances_train.json").rename(folder / "train/_annotations.coco.json")
    assert "choose from train" in refusal(read_coco, str(folder), "valid")
    (folder / "annotations").rmdir()
    assert len(objects(read(folder))) == 4
    assert "split=valid: no such split" in refusal(read_coco, str(folder), "valid")
    studio = tmp_path / "studio"
    faults.make_images(studio / "images")
    (studio / "annotations").mkdir()
    document = faults.coco_document()
    for entry in document["images"]:
        entry["file_name"] = rf"images\{entry['file_name']}"
    (studio / "annotations/result.json").write_text(json.dumps(document))
    assert len(objects(read_coco(str(studio), "result"))) == 4


@pytest.mark.parametrize(
    "segmentation",
    [
        *(
            None,
            "",
            5,
            [],
            [[]],
            {},
            [[5, 6, 25, 6]],
            [[5, 6, 25, 6, 25]],
            [[[5, 6], [25, 6], [25, 24]]],
            [None],
        ),
        *(
            [5, 6, 25, 6, 25, 24],
            [[5, 6, 25, 6, 25, None]],
            [[5, 6, "a", 6, 25, 24]],
            [["5", 6, 25, 6, 25, 24]],
        ),
        *(
            [[NAN] * 6],
            [[5, 6, NAN, 6, 25, 24]],
            [[5, 6, float("inf"), 6, 25, 24]],
            [[5, 6, 1e300, 6, 25, 24]],
        ),
        *(
            [[1e9, 1e9, -1e9, 1e9, 0, 0]],
            [[5, 6, 10**400, 6, 25, 24]],
            [[-(2**63), 0, 0, 0, 0, 9]],
            [[0, 0, 48, 0] * 50_000],
        ),
        *(
            [[5, 6, 25, 6, 25, 24], [1e9, 0, 1e9, 9, 0, 0]],
            [[5, 6, 25, 6, 25, 24], {"size": 1}],
            [[100, 0, 150, 0, 150, 9]],
        ),
    ],
)
def test_polygons_that_pycocotools_must_not_see(segmentation):
    assert compress(segmentation, SIDE, SIDE) is None


@pytest.mark.parametrize(
    "rings",
    [
        [[5, 6, 25, 6, 25, 24, 5, 24]],
        [[-300.5, -20, 300, 20.25, 20, 400]],  # out of its image, which pycocotools clips
        [[5, 6, 25, 6, 25, 24], [30, 30, 40, 30, 40, 47.5], [1, 1, 2, 2]],  # a line has no area
        [[0.5, 0.5, 47.9, 0.25, 47.5, 47.5, 0.1, 47.9] * 21],
    ],
)
def test_other_polygons_are_those_of_pycocotools(rings):
    wanted = tool.merge(tool.frPyObjects([ring for ring in rings if len(ring) > 4], SIDE, SIDE))
    assert compress(rings, SIDE, SIDE) == wanted


def packed_square():
    square = np.zeros((SIDE, SIDE), np.uint8, order="F")
    square[6:24, 5:25] = 1
    return square, tool.encode(square)["counts"].decode()


WHOLE = packed_square()[1]


@pytest.mark.parametrize(
    "counts",
    [
        *(
            WHOLE[:3],
            WHOLE[:-1],
            WHOLE * 40,
            WHOLE + "0",
            WHOLE + "\0",
            WHOLE.swapcase(),
            "garbage",
            "",
            " ",
            "é" * 9,
        ),
        *("\udc80", "P" * 500, "`", "?" * 99, "o" * 99, WHOLE + " ", None, 7, {}, [], [None], ["2304"]),
        *(
            [100, -50, 2254],
            [SIDE**2],
            [0, SIDE**2 + 1],
            [0, SIDE**2 - 1],
            [2**32, SIDE**2 - 2**32],
            [0.5, 2303.5],
        ),
        *([NAN, SIDE**2], [True, SIDE**2 - 1], [[0, SIDE**2]], [0, 10**400, -(10**400), SIDE**2]),
    ],
)
def test_damaged_run_lengths_are_none(counts):
    assert compress({"size": [SIDE, SIDE], "counts": counts}, SIDE, SIDE) is None


@pytest.mark.parametrize(
    "size", [None, [], [SIDE], [SIDE, SIDE, 1], [SIDE, 49], ["48", "48"], 48, [2**40, 2**40]]
)
def test_run_lengths_of_another_size_are_none(size):
    assert compress({"size": size, "counts": WHOLE}, SIDE, SIDE) is None
    assert compress({"counts": WHOLE}, SIDE, SIDE) is None


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_run_lengths_are_those_of_the_pixels(width, height, data):
    """With empty runs, where pycocotools itself would end the mask, and by either way of writing them."""
    cuts = sorted(data.draw(st.lists(st.integers(0, width * height), max_size=9)))
    counts = np.diff([0, *cuts, width * height]).tolist()
    values = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8)
    pixels = np.asfortranarray(values.reshape(width, height).T)
    made = compress({"size": [height, width], "counts": counts}, width, height)
    packed = tool.encode(pixels)
    assert made == (packed if pixels.any() else None)
    for text in (packed["counts"], packed["counts"].decode()):
        again = compress({"size": [height, width], "counts": text}, width, height)
        assert again == made
    if made is not None:
        np.testing.assert_array_equal(decompress(made), pixels)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32))
def test_large_run_lengths_unpack_to_what_pycocotools_packs(seed):
    noise = np.random.default_rng(seed).random((200, 300))
    pixels = np.asfortranarray((noise > [0.5, 0.99, 0.9999][seed % 3]).astype(np.uint8))
    packed = tool.encode(pixels)
    assert compress(packed, 300, 200) == (packed if pixels.any() else None)


def test_lists_as_tools_leave_them(voc):
    usual = objects(read_voc([str(voc())], "trainval"))
    assert len(usual) == 4
    for listed in (
        codecs.BOM_UTF8 + b"0\n1\n",
        "0\n1\n".encode("utf-16"),
        b"0\r\n1\r\n",
        b"\n0  1\n\n1 -1\n\n",
        b"0.jpg\n1.JPG\n",
        b"0.jpg 1\n1.jpg -1",
        b"JPEGImages/0.jpg\nJPEGImages\\1.jpg\n",
        b"/srv/me/voc/JPEGImages/0.jpg\n../1.jpg\n",
        b"D:\\voc\\JPEGImages\\0.jpg\r\nD:\\voc\\JPEGImages\\1.jpg\r\n",
    ):
        assert objects(read_voc([str(voc(listed=listed))], "trainval")) == usual, listed
    twice = read_voc([str(voc(listed=b"0\n1\n0\n"))], "trainval")
    assert objects(twice) == usual
    assert twice.issues.lines() == ["1 images listed again left out (first: 0)"]
    assert "trainval.txt: cannot be read ('utf-8' codec" in refusal(
        read_voc, [str(voc(listed=b"0\n\xe9\n"))], "trainval"
    )
    for listed in (b"nothing\n", b"..\n", b"a\0b\n", b"x" * 300, b"/\n", b"\xe2\x80\xae\n"):
        assert "no such annotation" in refusal(read_voc, [str(voc(listed=listed))], "trainval")


def test_names_with_spaces_dots_folders_and_numbers(voc):
    folder = voc()
    names = ("my photo (1)", "a.b", "sub/c", "photo 1", "größe", "x.png")
    for name in names:
        for part, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
            file = folder / part / f"{name}{suffix}"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes((folder / part / f"0{suffix}").read_bytes())
    listed = "my photo (1)\na.b\nsub/c\nphoto 1\ngröße 1\nx.png\n"
    (folder / "ImageSets/Main/trainval.txt").write_text(listed, encoding="utf-8")
    split = read_voc([str(folder)], "trainval")
    assert [image.path for image in split.images] == [folder / f"JPEGImages/{name}.jpg" for name in names]


@pytest.mark.parametrize(
    "suffix", [".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".JPG", ".JPEG", ".PNG", ".Tif"]
)
def test_images_of_any_type(voc, suffix):
    folder = voc()
    with Image.open(folder / "JPEGImages/0.jpg") as image:
        image.save(folder / f"JPEGImages/0{suffix}")
    (folder / "JPEGImages/0.jpg").unlink()
    assert read_voc([str(folder)], "trainval").images[0].path.name == f"0{suffix}"


def spoiled(**fields):
    document = faults.voc_document()
    document["object"][0] |= fields
    return document


def box(**corners):
    return spoiled(bndbox=faults.voc_document()["object"][0]["bndbox"] | corners)


@pytest.mark.parametrize(
    ("document", "kind", "why"),
    [
        (spoiled(bndbox=""), UNUSABLE.format("bndbox"), "0.jpg: object 1: bndbox is '', which has no fields"),
        (box(xmin=""), UNUSABLE.format("xmin"), "xmin is '', not a finite number"),
        (box(xmin="nan"), UNUSABLE.format("xmin"), "xmin is 'nan', not a finite number"),
        (box(xmax="inf"), UNUSABLE.format("xmax"), "xmax is 'inf', not a finite number"),
        (box(ymax="2,5"), UNUSABLE.format("ymax"), "ymax is '2,5', not a finite number"),
        (box(ymin={"a": 1}), UNUSABLE.format("ymin"), "ymin is {'a': '1'}, not a finite number"),
        (box(xmin=25, xmax=6), "boxes of negative size dropped", "0.jpg: object 1"),
        (box(xmin=1000, xmax=2000), "boxes outside their image dropped", "0.jpg: object 1"),
        (spoiled(name=""), UNUSABLE.format("name"), "name is '', not a name"),
        (spoiled(name={"a": 1}), UNUSABLE.format("name"), "name is {'a': '1'}, not a name"),
        (spoiled(difficult="hard"), UNUSABLE.format("difficult"), "difficult is 'hard', neither 0 nor 1"),
    ],
)
def test_a_voc_object_that_cannot_be_used_is_dropped_and_counted(voc, document, kind, why):
    split = read_voc([str(voc(document))], "trainval")
    assert split.issues.counts == {kind: 1}
    assert why in split.issues.first[kind]
    assert split.boxes == 3


@pytest.mark.parametrize(
    ("document", "corners", "difficult"),
    [
        (box(xmin="6.5", xmax=" 25.25\n"), (5.5, 6, 25.25, 24), False),
        (box(xmin=-100, ymax=1e9), (0, 6, 25, 48), False),
        (spoiled(difficult=""), (5, 6, 25, 24), False),
        (spoiled(difficult="Unspecified"), (5, 6, 25, 24), False),
        (spoiled(difficult="True"), (5, 6, 25, 24), True),
        (spoiled(difficult=" 1 "), (5, 6, 25, 24), True),
        (spoiled(name="\n car\t"), (5, 6, 25, 24), False),
        (spoiled(part=[{"name": "a", "bndbox": {"xmin": 1}}]), (5, 6, 25, 24), False),
        (faults.voc_document() | {"filename": "../wrong.png", "path": "C:\\x.jpg"}, (5, 6, 25, 24), False),
        (faults.voc_document() | {"size": ""}, (5, 6, 25, 24), False),
        (faults.voc_document() | {"size": {"width": 0, "height": 0}}, (5, 6, 25, 24), False),
        (faults.voc_document() | {"size": {"width": "a"}}, (5, 6, 25, 24), False),
    ],
)
def test_odd_voc_values_with_one_meaning_are_understood(voc, document, corners, difficult):
    split = read_voc([str(voc(document))], "trainval")
    one = split.images[0].instances[0]
    assert (one.box, one.difficult, split.classes[one.label]) == (corners, difficult, "car")
    assert split.boxes == 4


VALID = faults.as_xml("annotation", faults.voc_document())


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + VALID.encode(),
        b"\xef\xbb\xbf<?xml version='1.0' encoding='UTF-8'?>\r\n" + VALID.encode(),
        ("<?xml version='1.0' encoding='utf-16'?>" + VALID).encode("utf-16"),
        ("<?xml version='1.0' encoding='ISO-8859-1'?><!-- é -->" + VALID).encode("latin-1"),
        ("<?xml version='1.0' encoding='cp1252'?><!-- € -->" + VALID).encode("cp1252"),
        VALID.replace("<annotation>", "<annotation xmlns='urn:voc'>").encode(),
        VALID.replace("</", "</v:")
        .replace("<", "<v:")
        .replace("<v:/v:", "</v:")
        .replace("<v:a", "<v:a", 1)
        .encode(),
        b"<!DOCTYPE annotation>" + VALID.encode(),
        b'<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/voc.dtd">' + VALID.encode(),
        VALID.replace("car", "<![CDATA[car]]>").encode(),
    ],
)
def test_xml_as_tools_write_it(voc, data):
    usual = objects(read_voc([str(voc())], "trainval"))
    assert objects(read_voc([str(voc(data))], "trainval")) == usual


LAUGHS = '<!DOCTYPE a [<!ENTITY a "haha">' + "".join(
    f'<!ENTITY {name} "{f"&{former};" * 10}">'
    for former, name in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no element found"),
        (VALID.encode()[:-30], "unclosed token"),
        (b"\x89PNG\r\n", "not well-formed"),
        (VALID.encode() + VALID.encode(), "junk after document element"),
        (("<?xml version='1.0' encoding='klingon'?>" + VALID).encode(), "unknown encoding"),
        (("<?xml version='1.0' encoding='gbk'?>" + VALID).encode(), "multi-byte encodings are not supported"),
        (
            (LAUGHS + "]>" + VALID.replace("car", "&k;")).encode(),
            "it declares the entity a, which is not supported",
        ),
        (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + VALID.encode(), "declares the entity x"),
        (
            b'<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1:9/">%x;]>' + VALID.encode(),
            "declares the entity x",
        ),
        (VALID.replace("car", "&nbsp;").encode(), "undefined entity"),
        (b"<annotation>" + b"<a>" * 100_000, "nested deeper than 50 elements"),
        (b"<html><body/></html>", "not a VOC annotation (its root is <html>)"),
    ],
)
def test_a_wrong_xml_file_is_refused_in_one_line(voc, data, message):
    refused = refusal(read_voc, [str(voc(data))], "trainval")
    assert "Annotations/0.xml: " in refused
    assert message in refused


def test_an_image_of_another_size_than_voc_states_is_left_out(voc):
    split = read_voc([str(voc(faults.voc_document() | {"size": {"width": 500, "height": 375}}))], "trainval")
    assert split.issues.lines() == ["1 images of another size than annotated left out (first: 0.jpg)"]
    assert [image.path.name for image in split.images] == ["1.jpg"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_boxes_lie_in_the_image_as_its_exif_turns_it(coco, kind):
    """As annotation tools show it; an image whose stated size is that before turning is left out."""
    folder = coco(lambda document: document["images"][0].update(width=20, height=40))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "train/0.jpg", kind, exif=exif)
    split = read(folder)
    assert (split.images[0].width, split.images[0].height) == (20, 40)
    assert split.images[0].instances[0].box == (5, 6, 20, 24)
    coco(lambda document: document["images"][0].update(width=40, height=20))
    assert read(folder).issues.counts == {"images of another size than annotated left out": 1}


def test_a_damaged_document_is_trained_on_and_its_faults_are_reported(coco, tmp_path, capsys, monkeypatch):
    def small(*given, **settings):  # for time
        made = build_detector(*given, width=16, **settings)
        made.rpn._post_nms_top_n = {"training": 50, "testing": 50}
        made.roi_heads.detections_per_img = 5
        return made

    monkeypatch.setattr(trial, "build_detector", small)

    def spoil(document):
        for number, odd in enumerate(
            ({"bbox": None}, {"segmentation": [[NAN] * 6]}, {"area": "x"}, {"iscrowd": 7})
        ):
            document["annotations"].append(dict(document["annotations"][1], id=90 + number) | odd)

    coco(spoil)
    folder = coco(split="val")
    flags = {
        "model": "random:mobilenetv3_small_050",
        "train-data": folder,
        "format": "coco",
        "train-split": "train",
    }
    flags |= {"test-split": "val", "schedule": 1, "batch-size": 1, "image-size": 64, "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "evaluate",
                "detect",
                "--masks",
                *(text for name in flags for text in (f"--{name}", str(flags[name]))),
            ]
        )
    assert ended.value.code == 0
    shown = capsys.readouterr()
    for line in (
        "train: 1 objects dropped whose bbox cannot be used (first: 1.jpg: annotations[4]: bbox is null",
        "train: 1 objects dropped whose mask is empty, damaged or does not match its image",
        "train: 1 impossible areas replaced by those of their boxes (first: 1.jpg: annotations[6])",
        "train: 1 objects dropped whose iscrowd cannot be used",
    ):
        assert line in shown.out
        assert line in shown.err
    report = json.loads((tmp_path / "out/evaluate-detect.json").read_text())
    assert (report["train_boxes"], report["test_boxes"]) == (5, 4)


def test_a_split_of_which_nothing_remains_says_why(coco, capsys):
    def spoil(document):
        for entry in document["annotations"]:
            entry["bbox"] = [0.1, 0.1, 0.05, 0.05]  # parts of the image instead of pixels

    flags = [
        "--train-data",
        str(coco(spoil)),
        "--format",
        "coco",
        "--train-split",
        "train",
        "--out",
        "nowhere",
    ]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "detect", "--model", "random:resnet10t", *flags])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        "this split has no box to train on; 4 boxes thinner than 0.1 pixels in their image dropped" in error
    )


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(faults.ODD),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw, document):
    """A document some of whose values, at any depth, are any others."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        places = [(parent, key) for parent in faults.containers(document) for key in faults.keys(parent)]
        parent, key = draw(st.sampled_from(places)) if places else ({}, None)
        parent[key] = copy.deepcopy(draw(ANY_JSON))  # some values are drawn as the same object each time
    return document


fuzzed = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@fuzzed
@given(document=changed(faults.coco_document()))
def test_any_coco_document_is_refused_or_usable(tmp_path, document):
    assert faults.read_coco_case(json.dumps(document).encode(), tmp_path / "coco") in (
        "read",
        "changed",
        "refused",
    )


@fuzzed
@given(document=changed(faults.voc_document()), listed=st.binary(max_size=9) | st.just(b"0\n1\n"))
def test_any_voc_document_is_refused_or_usable(tmp_path, document, listed):
    data = faults.as_xml("annotation", document).encode("utf-8", "replace")
    assert faults.read_voc_case(data, tmp_path / "voc", listed) in ("read", "changed", "refused")


def test_damaged_bytes_are_refused_or_usable(tmp_path):
    outcomes = [faults.try_one(number, tmp_path) for number in range(10_000, 10_100)]
    assert {outcome.split()[1] for outcome in outcomes} == {"read", "changed", "refused"}
