from dataclasses import replace

import numpy as np
import pytest
import torch

from tinyseed.data.decode import BadImage
from tinyseed.detection.batches import Views, load, prefetched, training_batch
from tinyseed.detection.coco import read_coco
from tinyseed.detection.voc import read_voc
from tinyseed.errors import RunError

pytest.importorskip("pycocotools")


def shade(image, box):
    """Mean color in the middle half of a box."""
    x1, y1, x2, y2 = box.tolist()
    x, y = (x2 - x1) / 4, (y2 - y1) / 4
    return image[:, round(y1 + y) : round(y2 - y), round(x1 + x) : round(x2 - x)].mean((1, 2))


def test_boxes_and_masks_follow_size_and_flip(squares_coco):
    images = read_coco(str(squares_coco), "train2017", masks=True).images
    batch = training_batch(images, 0, Views(12, (48, 96), masks=True))
    assert sorted(batch.positions) == list(range(12))
    assert {tuple(image.shape[1:]) for image in batch.images} == {(48, 60), (96, 120)}
    flipped = 0
    for image, target, place in zip(batch.images, batch.targets, batch.positions, strict=True):
        scale = image.shape[1] / 64
        for box, label, mask, one in zip(
            target["boxes"], target["labels"], target["masks"], images[place].instances, strict=True
        ):
            red, _, blue = shade(image, box)
            assert (red > 0.6) if label == 2 else (blue > 0.6)
            assert label == one.label + 1
            rows, columns = torch.nonzero(mask, as_tuple=True)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(edges, box.numpy(), atol=1)
            straight = torch.tensor(one.box) * scale
            mirrored = torch.stack(
                (image.shape[2] - straight[2], straight[1], image.shape[2] - straight[0], straight[3])
            )
            assert torch.allclose(box, straight) or torch.allclose(box, mirrored)
            flipped += int(not torch.allclose(box, straight))
    assert 0 < flipped < 24


def test_batches_follow_from_their_number(squares_voc):
    images = read_voc([str(squares_voc)], "trainval").images
    views = Views(5, (32, 64), seed=1)
    threaded = list(prefetched(range(2, 6), images, views, workers=3))
    assert len(threaded) == 4
    for step, batch in zip(range(2, 6), threaded, strict=True):
        again = training_batch(images, step, views)
        assert batch.positions == again.positions
        assert all(torch.equal(one, other) for one, other in zip(batch.images, again.images, strict=True))
    order = [place for step in range(12) for place in training_batch(images, step, views).positions]
    epochs = [order[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_an_unreadable_image_gives_its_place_to_the_next(squares_voc, tmp_path):
    images = list(read_voc([str(squares_voc)], "trainval").images)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    images[3] = replace(images[3], path=tmp_path / "broken.jpg")
    views = Views(12, (32,))
    batch = training_batch(images, 0, views)
    position = batch.positions.index(3)
    wanted = torch.tensor([one.box for one in images[4].instances]) / 2
    found = batch.targets[position]["boxes"]
    torch.testing.assert_close(found[:, 1::2], wanted[:, 1::2])
    with pytest.raises(RunError, match="in a row cannot be read"):
        training_batch([images[3]], 0, views)
    gone = replace(images[3], path=tmp_path / "gone.jpg")
    with pytest.raises(BadImage, match="No such file"):
        load(gone, 32)
    with pytest.raises(BadImage, match="its size is another than when the annotations were read"):
        load(replace(images[4], width=images[4].height, height=images[4].width), 32)


def test_images_with_only_crowds_are_not_trained_on(squares_voc):
    split = read_voc([str(squares_voc)], "trainval")
    image = split.images[0]
    crowd = replace(image, instances=tuple(replace(one, crowd=True) for one in image.instances))
    half = replace(image, instances=(crowd.instances[0], image.instances[1]))
    images = (image, crowd, replace(image, instances=()), half)
    assert replace(split, images=images).trainable == (image, half)
    batch = training_batch([half], 0, Views(1, (32,)))
    assert len(batch.targets[0]["boxes"]) == 1
