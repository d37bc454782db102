import xml.etree.ElementTree as ET

import pytest
from tinyseed.evaluation.detect.voc import read_voc

from tinyseed.errors import InputError


def an_object(name, corners, difficult=0):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def test_boxes_are_those_of_the_xml_counted_from_0(squares_voc):
    given = read_voc([str(squares_voc)], "trainval", "--train-data")
    assert given.classes == ("blue", "red")
    assert [scene.path.stem for scene in given.scenes] == [f"{number:03d}" for number in range(12)]
    assert {(scene.width, scene.height) for scene in given.scenes} == {(80, 64)}
    for scene in given.scenes:
        root = ET.parse(squares_voc / "Annotations" / f"{scene.path.stem}.xml").getroot()
        wanted = []
        for element in root.iter("object"):
            x1, y1, x2, y2 = (
                int(element.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax")
            )
            wanted.append((element.findtext("name"), (x1 - 1.0, y1 - 1.0, float(x2), float(y2))))
        assert [(given.classes[one.label], one.box) for one in scene.instances] == wanted
    assert given.left_out.lines() == []


def test_the_two_boxes_of_zero_size_in_bccd_are_dropped_and_told(shared_data):
    folders = [str(shared_data / "bccd-voc")]
    sides = [read_voc(folders, split, "--train-data") for split in ("trainval", "test")]
    assert [len(side.scenes) for side in sides] == [292, 72]
    assert sides[0].classes == ("Platelets", "RBC", "WBC")
    assert sides[0].boxes + sides[1].boxes == 4888 - 2
    told = [line for side in sides for line in side.left_out.lines()]
    assert sum(int(line.split()[0]) for line in told) == 2
    assert all("boxes of zero size dropped (first: BloodImage_003" in line for line in told)


def test_bad_boxes_are_dropped_cut_and_counted(voc_folder):
    extra = "".join(
        (
            an_object("red", (5, 5, 5, 9)),  # no width
            an_object("red", (200, 5, 240, 20)),  # beside the image
            an_object("red", (60, 50, 95, 99)),  # sticks out
            an_object("red", (0, 0, 20, 20)),  # a pixel out, as some tools write the border
        )
    )
    given = read_voc([str(voc_folder(extra))], "trainval", "--train-data")
    assert dict(given.left_out.counts) == {
        "boxes of zero size dropped": 2,
        "boxes outside their image dropped": 2,
        "boxes cut at the border of their image": 2,
    }
    assert [one.box for one in given.scenes[0].instances[2:]] == [
        (59.0, 49.0, 80.0, 64.0),
        (0.0, 0.0, 20.0, 20.0),
    ]


def test_difficult_objects_are_marked(voc_folder):
    given = read_voc(
        [str(voc_folder(an_object("red", (1, 1, 9, 9), difficult=1)))], "trainval", "--train-data"
    )
    assert [one.difficult for one in given.scenes[0].instances] == [False, False, True]


def test_folders_of_several_years_are_joined_where_they_have_the_split(squares_voc, tmp_path):
    years = tmp_path / "VOCdevkit"
    for year in ("VOC2007", "VOC2012"):
        (years / year).parent.mkdir(exist_ok=True)
        (years / year).symlink_to(squares_voc)
    assert len(read_voc([str(years)], "trainval", "--train-data").scenes) == 24
    assert len(read_voc([str(squares_voc), str(squares_voc)], "test", "--train-data").scenes) == 12
    assert len(read_voc([str(years)], "trainval", "--train-data", limit=5).scenes) == 5


def read(folder, split="trainval", **settings):
    with pytest.raises(InputError) as told:
        read_voc([str(folder)], split, "--train-data", **settings)
    return str(told.value)


def test_mistakes_are_told_in_a_line(voc_folder, tmp_path):
    assert "no such folder" in read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no Annotations folder" in read(tmp_path / "empty")
    folder = voc_folder()
    assert read(folder, "val").startswith("--train-split: val: no such split")
    assert "there are trainval" in read(folder, "val")
    assert "red: is no class of the train split (blue, green)" in read(folder, classes=("blue", "green"))
    (folder / "JPEGImages/001.jpg").unlink()
    assert "001.jpg: no such image (1 of 2 annotated images are not there)" in read(folder)
    (folder / "Annotations/001.xml").write_text("<annotation><object>")
    assert "001.xml: is no readable VOC annotation" in read(folder)
    (folder / "Annotations/001.xml").write_text(
        "<annotation><object><name>red</name><bndbox><xmin>a</xmin></bndbox></object></annotation>"
    )
    assert "001.xml: is no readable VOC annotation" in read(folder)
    (folder / "Annotations/001.xml").unlink()
    assert "001.xml: no such annotation" in read(folder)


def test_an_unreadable_image_is_left_out_and_told(voc_folder):
    folder = voc_folder()
    (folder / "JPEGImages/000.jpg").write_bytes(b"no image")
    given = read_voc([str(folder)], "trainval", "--train-data")
    assert [scene.path.name for scene in given.scenes] == ["001.jpg"]
    assert given.left_out.lines() == ["1 unreadable images left out (first: 000.jpg)"]
