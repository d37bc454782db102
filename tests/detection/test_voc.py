import xml.etree.ElementTree as ET

import pytest

from tinyseed.detection.voc import read_voc
from tinyseed.errors import InputError


def an_object(name, corners, difficult=0):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def test_boxes_are_those_of_the_xml_counted_from_0(squares_voc):
    given = read_voc([str(squares_voc)], "trainval")
    assert given.classes == ("blue", "red")
    assert [image.path.stem for image in given.images] == [f"{number:03d}" for number in range(12)]
    assert {(image.width, image.height) for image in given.images} == {(80, 64)}
    for image in given.images:
        root = ET.parse(squares_voc / "Annotations" / f"{image.path.stem}.xml").getroot()
        wanted = []
        for element in root.iter("object"):
            x1, y1, x2, y2 = (
                int(element.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax")
            )
            wanted.append((element.findtext("name"), (x1 - 1.0, y1 - 1.0, float(x2), float(y2))))
        assert [(given.classes[one.label], one.box) for one in image.instances] == wanted
    assert given.issues.lines() == []


def test_the_two_boxes_of_zero_size_in_bccd_are_dropped_and_reported(shared_data):
    folders = [str(shared_data / "bccd-voc")]
    splits = [read_voc(folders, split) for split in ("trainval", "test")]
    assert [len(split.images) for split in splits] == [292, 72]
    assert splits[0].classes == ("Platelets", "RBC", "WBC")
    assert splits[0].boxes + splits[1].boxes == 4888 - 2
    lines = [line for split in splits for line in split.issues.lines()]
    assert sum(int(line.split()[0]) for line in lines) == 2
    assert all("boxes of zero size dropped (first: BloodImage_003" in line for line in lines)


def test_bad_boxes_are_dropped_clipped_and_counted(voc_folder):
    extra = "".join(
        (
            an_object("red", (5, 5, 5, 9)),  # no width
            an_object("red", (200, 5, 240, 20)),  # beside the image
            an_object("red", (60, 50, 95, 99)),  # sticks out
            an_object("red", (0, 0, 20, 20)),  # a pixel out, as some tools write the border
        )
    )
    given = read_voc([str(voc_folder(extra))], "trainval")
    assert dict(given.issues.counts) == {
        "boxes of zero size dropped": 2,
        "boxes outside their image dropped": 2,
        "boxes clipped to their image": 2,
    }
    assert [one.box for one in given.images[0].instances[2:]] == [
        (59.0, 49.0, 80.0, 64.0),
        (0.0, 0.0, 20.0, 20.0),
    ]


def test_difficult_objects_are_marked(voc_folder):
    given = read_voc([str(voc_folder(an_object("red", (1, 1, 9, 9), difficult=1)))], "trainval")
    assert [one.difficult for one in given.images[0].instances] == [False, False, True]


def test_folders_of_several_years_are_joined_where_they_have_the_split(squares_voc, tmp_path):
    years = tmp_path / "VOCdevkit"
    for year in ("VOC2007", "VOC2012"):
        (years / year).parent.mkdir(exist_ok=True)
        (years / year).symlink_to(squares_voc)
    assert len(read_voc([str(years)], "trainval").images) == 24
    assert len(read_voc([str(squares_voc), str(squares_voc)], "test").images) == 12
    assert len(read_voc([str(years)], "trainval", limit=5).images) == 5


def read(folder, split="trainval", **settings):
    with pytest.raises(InputError) as refused:
        read_voc([str(folder)], split, **settings)
    return str(refused.value)


def test_mistakes_are_one_line_errors(voc_folder, tmp_path):
    assert "no such folder" in read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no Annotations folder" in read(tmp_path / "empty")
    folder = voc_folder()
    assert read(folder, "val").startswith("split=val: no such split")
    assert "choose from trainval" in read(folder, "val")
    assert "red: not a class of the train split (blue, green)" in read(folder, classes=("blue", "green"))
    (folder / "JPEGImages/001.jpg").unlink()
    assert "001.jpg: no such image (1 of 2 annotated images are missing)" in read(folder)
    (folder / "Annotations/001.xml").write_text("<annotation><object>")
    assert "001.xml: cannot be read as a VOC annotation" in read(folder)
    (folder / "Annotations/001.xml").unlink()
    assert "001.xml: no such annotation" in read(folder)


def test_an_unreadable_image_is_left_out_and_reported(voc_folder):
    folder = voc_folder()
    (folder / "JPEGImages/000.jpg").write_bytes(b"no image")
    given = read_voc([str(folder)], "trainval")
    assert [image.path.name for image in given.images] == ["001.jpg"]
    assert given.issues.lines() == ["1 unreadable images left out (first: 000.jpg)"]
