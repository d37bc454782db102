"""Data as people really have it: labels and images in any usual column, files of other kinds, few file descriptors."""

import codecs
import datetime
import io
import json
import os
import resource
import socket
import tempfile
import unicodedata
from decimal import Decimal
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tinyseed
from tinyseed.data import folder as folder_module
from tinyseed.data import parquet, reading
from tinyseed.data.base import notes_of
from tinyseed.data.folder import EXTENSIONS
from tinyseed.data.sources import open_source
from tinyseed.errors import InputError, RunError, remedy_of

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NUMBERS = count()


def jpeg(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


JPEGS = [jpeg(seed) for seed in range(4)]
IMAGES = pa.array([{"bytes": data, "path": None} for data in JPEGS], STRUCT)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))


def write(path, columns, features=None):
    metadata = {b"huggingface": json.dumps({"info": {"features": features}})} if features else None
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def opened(tmp_path, columns, features=None):
    return open_source([str(write(tmp_path / f"{next(NUMBERS)}.parquet", columns, features))])


def by_name(source):
    """The class of each image by its name, None where it has none."""
    if source.labels is None:
        return None
    return [source.classes[label] if label >= 0 else None for label in source.labels.tolist()]


def read_all(source):
    return [source.read(at) for at in range(len(source))]


CLASSES = {"_type": "ClassLabel", "names": ["ant", "bee", "cat"]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, 1, -1, 1], ["-1", "1", "-1", "1"]),
        ([-2, -1, 5, None], ["-2", "-1", "5", None]),
        ([0.0, 1.0, float("nan"), None], ["0", "1", None, None]),
        (pa.array([0, 1, 0, 1], pa.float32()).cast(pa.float16()), ["0", "1", "0", "1"]),
        ([Decimal("1.0"), Decimal("2.0"), None, Decimal("1.0")], ["1", "2", None, "1"]),
        ([True, False, None, True], ["True", "False", None, "True"]),
        (pa.array([2**63, 1, 2, 1], pa.uint64()), ["9223372036854775808", "1", "2", "1"]),
        ([b"a", b"b", None, b"\xff"], ["a", "b", None, "\\xff"]),
        (pa.array(["a", "b", None, "a"], pa.large_string()), ["a", "b", None, "a"]),
        (pa.array(["a", "b", None, "a"]).cast(pa.string_view()), ["a", "b", None, "a"]),
        (pa.array([b"a", b"b", None, b"a"]).cast(pa.binary_view()), ["a", "b", None, "a"]),
        (pa.array([b"a", b"b", None, b"a"], pa.binary(1)), ["a", "b", None, "a"]),
        (pa.array(["a", "b", None, "a"]).dictionary_encode(), ["a", "b", None, "a"]),
        (pa.array([3, 4, None, 3]).dictionary_encode(), ["3", "4", None, "3"]),
    ],
)  # fmt: skip
def test_label_values(tmp_path, values, expected):
    assert by_name(opened(tmp_path, {"image": IMAGES, "label": values})) == expected


@pytest.mark.parametrize("values", [[0, 2, -1, None], [0.0, 2.0, -1.0, None], ["ant", "cat", None, None]])
def test_minus_one_is_no_label_where_classes_are_declared(tmp_path, values):
    source = opened(tmp_path, {"image": IMAGES, "label": values}, {"label": CLASSES})
    assert by_name(source) == ["ant", "cat", None, None]
    assert source.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("value", [-2, 3, 2**40])
def test_labels_beyond_the_declared_classes(tmp_path, value):
    with pytest.raises(InputError, match=f"has the label {value} but declares 3 classes"):
        opened(tmp_path, {"image": IMAGES, "label": [0, 1, 2, value]}, {"label": CLASSES})


def test_classes_of_the_same_name_stay_apart(tmp_path):
    cranes = {"_type": "ClassLabel", "names": ["crane", "dog", "crane"]}
    source = opened(tmp_path, {"image": IMAGES, "label": [0, 1, 2, 2]}, {"label": cranes})
    assert by_name(source) == ["crane (0)", "dog", "crane (2)", "crane (2)"]


@pytest.mark.parametrize(
    "name", ["labels", "class", "target", "category", "fine_label", "cls", "Label", "y", "class_name"]
)
def test_label_columns_of_other_names(tmp_path, name):
    assert by_name(opened(tmp_path, {"image": IMAGES, name: [0, 1, 1, 0]})) == ["0", "1", "1", "0"]


@pytest.mark.parametrize(
    ("columns", "features", "taken", "other"),
    [
        ({"target": ["t"] * 4, "label": list("abab")}, None, "label", "target"),
        ({"class": list("abab"), "labels": [0, 1, 0, 1]}, None, "labels", "class"),
        ({"coarse": [0, 0, 1, 1], "label": [2, 1, 0, 1]}, {"coarse": CLASSES}, "label", "coarse"),
        ({"labels": [0, 1, 1, 0], "kind": [2, 1, 0, 1]}, {"kind": CLASSES}, "kind", "labels"),
        ({"label": [[0], [1], [0], [1]], "target": [0, 1, 1, 0]}, None, "target", "label"),
    ],
)
def test_of_several_label_columns_one_is_taken_and_the_choice_is_told(
    tmp_path, columns, features, taken, other
):
    source = opened(tmp_path, {"image": IMAGES, **columns}, features)
    names = CLASSES["names"] if taken in (features or {}) else None
    assert by_name(source) == [names[value] if names else str(value) for value in columns[taken]]
    (note,) = notes_of(source)
    assert f"`{other}`" in note


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("label", [0.5, 1, 2, 1], "`label` is not taken as labels: 0.5 is not a whole number"),
        ("label", [1, float("inf"), 2, 1], "`label` is not taken as labels: inf is not a whole number"),
        ("label", [[1], [2], [1], [2]], "`label` is not taken as labels: its type list"),
        ("labels", [{"a": 1}] * 4, "`labels` is not taken as labels: its type struct"),
        ("label", [datetime.date(2020, 1, 1)] * 4, "`label` is not taken as labels: its type is date32"),
        ("label", pa.nulls(4), "`label` is not taken as labels: it holds no value"),
        ("label", [None, float("nan")] * 2, "`label` is not taken as labels: it holds no value"),
        ("target", [7] * 4, r"`target` is not taken as labels: it holds a single class \(7\)"),
        ("caption", list("abcd"), r"no column is taken as labels \(`caption`\)"),
    ],
)
def test_labels_that_are_not_taken_are_named_with_the_reason(tmp_path, column, values, reason):
    path = str(write(tmp_path / "a.parquet", {"image": IMAGES, column: values}))
    source = open_source([path])
    assert source.labels is None
    with pytest.raises(InputError, match=rf"train_data={path}: has no labels \({path}: .*{reason}") as caught:
        tinyseed.evaluate("knn", model="random:test_resnet", train_data=path, test_data=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [([0, 1, 0, 1], [False, True, False, True]), ([0, 1, 0, 1], list("abab")), (["True", "False"] * 2, [1, 0, 1, 0])],
)  # fmt: skip
def test_labels_of_two_kinds_that_do_not_meet_are_refused_with_both(tmp_path, train, test):
    paths = [
        str(write(tmp_path / f"{name}.parquet", {"image": IMAGES, "label": values}))
        for name, values in (("one", train), ("two", test))
    ]
    with pytest.raises(
        InputError, match=r"two\.parquet: none of its classes \(.*\) is a class of `train_data` \("
    ):
        tinyseed.evaluate("knn", model="random:test_resnet", train_data=paths[0], test_data=paths[1])
    with pytest.raises(InputError, match=r"the labels are \w+ in one\.parquet .* and \w+ in two\.parquet"):
        open_source([str(tmp_path / "*.parquet")])


@pytest.mark.parametrize("values", [[0.0, 1.0, 0.0, 1.0], ["0", "1", "0", "1"], [b"0", b"1"] * 2])
def test_labels_of_two_kinds_meet_by_name(tmp_path, values):
    write(tmp_path / "a.parquet", {"image": IMAGES, "label": [0, 1, 1, 0]})
    write(tmp_path / "b.parquet", {"image": IMAGES, "label": values})
    assert by_name(open_source([str(tmp_path / "*.parquet")])) == list("01100101")


LISTS = [list(data) for data in JPEGS]


@pytest.mark.parametrize("name", ["image", "img", "picture", "jpg", "image_bytes", "pixel_values", "Image"])
@pytest.mark.parametrize(
    "values",
    [
        IMAGES,
        pa.array(JPEGS, pa.large_binary()),
        pa.array(JPEGS).cast(pa.binary_view()),
        pa.array(JPEGS).dictionary_encode(),
        pa.array(LISTS, pa.list_(pa.uint8())),
        pa.array(LISTS, pa.large_list(pa.uint8())),
    ],
    ids=["struct", "large", "view", "dictionary", "list", "large list"],
)
def test_image_columns(tmp_path, name, values):
    assert read_all(opened(tmp_path, {"id": [1, 2, 3, 4], name: values})) == JPEGS


def test_image_columns_of_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.jpg").write_bytes(JPEGS[0])
    paths = ["sub/a.jpg", None, str(tmp_path / "sub/a.jpg"), "gone.jpg"]
    for name in ("image", "file_name", "image_path"):
        source = opened(tmp_path, {name: paths})
        assert [source.read(at) for at in range(3)] == [JPEGS[0], b"", JPEGS[0]]
        with pytest.raises(FileNotFoundError):
            source.read(3)
    with pytest.raises(InputError, match="none of the files that its rows name exists, the first gone"):
        opened(tmp_path, {"image": ["gone.jpg", "lost.jpg"]})


def test_an_image_feature_of_the_metadata_comes_first(tmp_path):
    columns = {"photo": pa.array([b"wrong"] * 4), "scan": pa.array(JPEGS)}
    source = opened(tmp_path, columns, {"scan": {"_type": "Image"}})
    assert read_all(source) == JPEGS
    assert "images are read from the column `scan`, not from `photo`" in notes_of(source)[0]


def test_lists_of_bytes_with_gaps(tmp_path):
    values = pa.array([LISTS[0], None, [], LISTS[1], LISTS[2]], pa.list_(pa.uint8()))
    assert read_all(opened(tmp_path, {"image": values})) == [JPEGS[0], b"", b"", JPEGS[1], JPEGS[2]]


@pytest.mark.parametrize(
    "values", [[[[0.5]]] * 4, [1, 2, 3, 4], [{"pixels": 1}] * 4, pa.array([[1, 2]] * 4, pa.list_(pa.int64()))]
)
def test_image_columns_that_are_not_taken_are_named_with_their_type(tmp_path, values):
    with pytest.raises(
        InputError, match=r"has no image column .*: `image` is of type \w+.*, which holds no encoded"
    ):
        opened(tmp_path, {"image": values, "label": [0, 1, 0, 1]})


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(JPEGS), pa.array(JPEGS)], names=["image", "image"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="there are several columns `image`"):
        open_source([str(tmp_path / "a.parquet")])


def test_an_empty_file_among_others_is_left_out_and_told(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/a.parquet", {"image": IMAGES})
    write(tmp_path / "in/b.parquet", {"image": IMAGES.slice(0, 0)})
    source = open_source([str(tmp_path / "in")])
    assert len(source) == 4
    assert any("left out 1 file without rows" in note for note in notes_of(source))


def test_what_is_no_parquet_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(InputError, match="is not a regular file"):
        open_source([str(tmp_path / "pipe.parquet")])


def test_an_encrypted_file(tmp_path):
    import pyarrow.parquet.encryption as pe

    class Kms(pe.KmsClient):
        def __init__(self, _):
            super().__init__()

        def wrap_key(self, key_bytes, _):
            return codecs.encode(key_bytes, "hex")

        def unwrap_key(self, wrapped_key, _):
            return codecs.decode(wrapped_key, "hex")

    factory = pe.CryptoFactory(Kms)
    keys = pe.EncryptionConfiguration(footer_key="k", column_keys={"k": ["image"]})
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), keys)
    path = tmp_path / "a.parquet"
    table = pa.table({"image": JPEGS})
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        open_source([str(path)])


VALUES = {
    pa.int8(): st.integers(-3, 3),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats(),
    pa.float32(): st.floats(width=32),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=4),
    pa.binary(): st.binary(max_size=4),
    pa.date32(): st.dates(),
    pa.list_(pa.uint8()): st.lists(st.integers(0, 255), max_size=3),
    pa.list_(pa.int64()): st.lists(st.integers(0, 9), max_size=2),
    STRUCT: st.fixed_dictionaries({"bytes": st.binary(max_size=3), "path": st.none()}),
    pa.struct([("path", pa.string())]): st.fixed_dictionaries({"path": st.text(max_size=3)}),
    pa.null(): st.none(),
    pa.timestamp("us"): st.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2200, 1, 1)),
    pa.decimal128(9, 2): st.decimals(-9999, 9999, places=2),
}
NAMES = st.sampled_from(["image", "img", "label", "class", "x", "a.b", "", "bytes"])


@st.composite
def tables(draw):
    """Tables of random columns, some with names that mean something, and metadata that may not fit."""
    rows = draw(st.integers(0, 6))
    names = draw(st.lists(NAMES, max_size=4, unique=draw(st.booleans())))
    arrays = []
    for _ in names:
        kind = draw(st.sampled_from(list(VALUES)))
        array = pa.array(draw(st.lists(st.none() | VALUES[kind], min_size=rows, max_size=rows)), kind)
        arrays.append(
            array.dictionary_encode() if draw(st.booleans()) and not pa.types.is_nested(kind) else array
        )
    feature = st.sampled_from(
        [CLASSES, {"_type": "Image"}, {"_type": "ClassLabel", "names": 3}, None, [], "x"]
    )
    features = draw(
        st.none() | st.dictionaries(st.sampled_from(["image", "label", "x"]), feature, max_size=2)
    )
    metadata = None if features is None else {b"huggingface": json.dumps({"info": {"features": features}})}
    return pa.Table.from_arrays(arrays, names=names).replace_schema_metadata(metadata)


@given(tables())
@settings(max_examples=150, deadline=None)
def test_any_table_is_opened_or_refused_in_a_line(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    try:
        pq.write_table(table, path)
    except (pa.ArrowException, OSError):
        return  # what Arrow itself cannot write
    try:
        source = open_source([str(path)])
    except InputError:
        return
    assert len(source) == len(table)
    assert source.labels is None or len(source.labels) == len(table)
    for at in range(len(source)):
        try:
            source.read(at)
        except OSError:
            continue


def picture(path, kind="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), "teal").save(path, kind)


def test_what_is_left_out_of_a_folder_is_counted_and_told(tmp_path):
    root = tmp_path / "in"
    for at in range(3):
        picture(root / f"a/{at}.jpg")
        picture(root / f"b/{at}.JFIF")
    for name in (
        "c/1.heic",
        "c/2.HEIC",
        "c/3.heic",
        "a/notes.txt",
        "b/README",
        "a/x.tar.gz",
        "a/\xff.odd\nname",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "d").mkdir()
    source = open_source([str(root)])
    assert source.classes == ("a", "b")
    files, folders = notes_of(source)
    assert files.startswith(f"{root}: left out 7 files not read as images (3 .heic, ")
    others = {"1 .txt", "1 .gz", "1 of other names", "1 without an extension"}
    assert set(files.rstrip(")").partition("(3 .heic, ")[2].split(", ")) == others
    assert folders == f"{root}: 2 sub-folders without an image that can be read (c, d)"
    assert notes_of(open_source([str(root)])) == notes_of(source)  # from the index, too


def test_a_folder_of_other_files_says_what_they_are(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.heic").write_bytes(b"x")
    with pytest.raises(
        InputError,
        match=r"holds no images .*left out 1 file not read as images? \(1 \.heic\)",
    ):
        open_source([str(tmp_path / "in")])


@pytest.mark.parametrize(
    "extension", ["ppm", "pgm", "pbm", "pnm", "pfm", "jfif", "jpe", "avif", "apng", "mpo"]
)
def test_further_formats_are_read(extension):
    assert extension in EXTENSIONS


def test_notes_are_told_at_the_start_once_and_kept_in_the_report(tmp_path, capsys):
    for at in range(6):
        for name in ("a", "b"):
            picture(tmp_path / f"in/{name}/{at}.png", "PNG")
    (tmp_path / "in/a/x.heic").write_bytes(b"x")
    common = {"train_data": tmp_path / "in", "test_data": tmp_path / "in", "k": [1], "image_size": 32}
    report = tinyseed.evaluate("knn", model="random:test_resnet", **common)
    told = capsys.readouterr().err
    assert told.count("left out 1 file") == 1
    assert sum("left out 1 file" in note for note in report.notes) == 1


def test_odd_entries_never_block_and_are_told(tmp_path):
    root = tmp_path / "in"
    picture(root / "a/1.jpg")
    os.mkfifo(root / "a/pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "a/socket.jpg"))
    (root / "a/device.jpg").symlink_to("/dev/zero")
    (root / "a/broken.jpg").symlink_to("nowhere")
    (root / "a/self.jpg").symlink_to("self.jpg")
    (root / "a/folder.jpg").mkdir()
    for clutter in ("@eaDir/1.jpg", "__MACOSX/1.jpg", ".thumbnails/1.jpg"):
        picture(root / clutter)
    source = open_source([str(root)])
    assert len(source) == 1
    (note,) = notes_of(source)
    assert "4 broken links" in note or ("not regular files" in note and "broken links" in note)


def test_a_pipe_in_the_place_of_an_image_is_an_error_at_once(tmp_path):
    picture(tmp_path / "in/a.jpg")
    source = open_source([str(tmp_path / "in")])
    (tmp_path / "in/a.jpg").unlink()
    os.mkfifo(tmp_path / "in/a.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        source.read(0)


def test_an_enormous_file_is_not_read_into_memory(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(reading.LARGEST_FILE + 1)
    with pytest.raises(OSError, match="larger than 1 GiB"):
        open_source([str(tmp_path)]).read(0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_sub_folder_without_permission_is_left_out_with_a_warning(monkeypatch):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        picture(root / "a/1.jpg")
        picture(root / "lost+found/2.jpg")
        (root / "lost+found").chmod(0)
        (root / "cache").mkdir()
        root.chmod(0o755)
        (root / "cache").chmod(0o777)
        monkeypatch.setenv("TINYSEED_CACHE", str(root / "cache"))
        os.seteuid(65534)
        try:
            source = open_source([str(root)])
        finally:
            os.seteuid(0)
    assert len(source) == 1
    told = f"{root}: left out 1 folder that cannot be listed (lost+found: Permission denied)"
    assert told in notes_of(source)


ACCENTED = "Café déjà vu.jpg"


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + f"{ACCENTED}\r\nb c.jpg\r\n".encode(),
        f"{ACCENTED}\nb c.jpg\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + f"{ACCENTED}\nb c.jpg\n".encode("utf-16-be"),
        f"{ACCENTED}\rb c.jpg\r".encode("cp1252"),
        unicodedata.normalize("NFD", f"{ACCENTED}\nb c.jpg").encode(),
        f"# comment\n\n  \"{ACCENTED}\"  \n'b c.jpg'\t\n".encode(),
    ],
    ids=["BOM and CRLF", "UTF-16", "UTF-16, big endian", "Latin 1 and CR", "NFD", "quotes"],
)
def test_lists_in_any_encoding(tmp_path, content):
    for name in (ACCENTED, "b c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "list.txt").write_bytes(content)
    for _ in range(2):
        assert read_all(open_source([str(tmp_path / "list.txt")])) == [ACCENTED.encode(), b"b c.jpg"]


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("https://example.org/a.jpg", "URLs are not read"),
        ("a.jpg 3", "without a label"),
        ("a.jpg,cat", "without a label"),
    ],
)
def test_lists_of_something_else_say_so(tmp_path, line, remedy):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text(line)
    with pytest.raises(InputError, match=remedy):
        open_source([str(tmp_path / "list.txt")])


def test_many_sources_need_few_descriptors(tmp_path):
    """300 folders, lists and Parquet files are opened and read where only a few more files may be open."""
    specs = []
    for at in range(100):
        picture(tmp_path / f"in/{at}/1.jpg")
        (tmp_path / f"in/{at}.txt").write_text(f"{at}/1.jpg")
        write(tmp_path / f"in/{at}.parquet", {"image": [b"x", b"y"]})
        specs += [str(tmp_path / f"in/{at}{ending}") for ending in ("", ".txt", ".parquet")]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 6, hard))
    try:
        source = open_source(specs)
        assert len(read_all(source)) == 400
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_open_files_is_no_fault_of_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_PAUSES", (0.0,))
    picture(tmp_path / "in/a.jpg")
    write(tmp_path / "a.parquet", {"image": [b"x"]})
    sources = [open_source([str(tmp_path / name)]) for name in ("in", "a.parquet")]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        for source in sources:
            with pytest.raises(OSError, match="Too many open files") as caught:
                source.read(0)
            assert remedy_of(caught.value) is not None  # so that the loader ends the run instead of the image
        for open_it in (
            lambda: folder_module._index_folder(b"/"),
            lambda: parquet._files_of_one_split(tmp_path, []),
        ):
            with pytest.raises(RunError, match=r"Too many open files.*ulimit -n"):
                open_it()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sources[1].read(0) == b"x"


def test_a_cache_that_was_emptied_is_no_fault_of_the_image(tmp_path):
    source = opened(tmp_path, {"image": IMAGES})
    for path in (tmp_path / "cache").rglob("*.images"):
        path.unlink()
    with pytest.raises(RunError, match="was removed while it was in use"):
        source.read(0)
