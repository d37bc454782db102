from dataclasses import replace

import numpy as np
import pytest
import torch
from tinyseed.evaluation.detect.batches import Sizes, prefetched, trainable, training_batch
from tinyseed.evaluation.detect.coco import read_coco
from tinyseed.evaluation.detect.voc import read_voc

from tinyseed.errors import RunError

pytest.importorskip("pycocotools")


def shade(image, box):
    """Mean colour in the middle half of a box."""
    x1, y1, x2, y2 = box.tolist()
    x, y = (x2 - x1) / 4, (y2 - y1) / 4
    return image[:, round(y1 + y) : round(y2 - y), round(x1 + x) : round(x2 - x)].mean((1, 2))


def test_boxes_and_masks_follow_size_and_flip(squares_coco):
    scenes = read_coco(str(squares_coco), "train2017", "--train-data", masks=True).scenes
    batch = training_batch(scenes, 0, size=12, sizes=Sizes((48, 96)), seed=0, masks=True)
    assert sorted(batch.places) == list(range(12))
    assert {tuple(image.shape[1:]) for image in batch.images} == {(48, 60), (96, 120)}
    flipped = 0
    for image, target, place in zip(batch.images, batch.targets, batch.places, strict=True):
        scale = image.shape[1] / 64
        for box, label, mask, one in zip(
            target["boxes"], target["labels"], target["masks"], scenes[place].instances, strict=True
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
    scenes = read_voc([str(squares_voc)], "trainval", "--train-data").scenes
    settings = {"size": 5, "sizes": Sizes((32, 64)), "seed": 1, "masks": False}
    threaded = list(prefetched(range(2, 6), scenes, workers=3, **settings))
    assert len(threaded) == 4
    for step, batch in zip(range(2, 6), threaded, strict=True):
        again = training_batch(scenes, step, **settings)
        assert batch.places == again.places
        assert all(torch.equal(one, other) for one, other in zip(batch.images, again.images, strict=True))
    order = [place for step in range(12) for place in training_batch(scenes, step, **settings).places]
    epochs = [order[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_an_unreadable_image_gives_its_place_to_the_next(squares_voc, tmp_path):
    scenes = list(read_voc([str(squares_voc)], "trainval", "--train-data").scenes)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    scenes[3] = replace(scenes[3], path=tmp_path / "broken.jpg")
    settings = {"size": 12, "sizes": Sizes((32,)), "seed": 0, "masks": False}
    batch = training_batch(scenes, 0, **settings)
    position = batch.places.index(3)
    wanted = torch.tensor([one.box for one in scenes[4].instances]) / 2
    found = batch.targets[position]["boxes"]
    torch.testing.assert_close(found[:, 1::2], wanted[:, 1::2])
    with pytest.raises(RunError, match="in a row cannot be read"):
        training_batch([scenes[3]], 0, **settings)


def test_crowds_alone_are_nothing_to_learn_from(squares_voc):
    scene = read_voc([str(squares_voc)], "trainval", "--train-data").scenes[0]
    crowd = replace(scene, instances=tuple(replace(one, crowd=True) for one in scene.instances))
    half = replace(scene, instances=(crowd.instances[0], scene.instances[1]))
    assert trainable([scene, crowd, replace(scene, instances=()), half]) == [scene, half]
    batch = training_batch([half], 0, size=1, sizes=Sizes((32,)), seed=0, masks=False)
    assert len(batch.targets[0]["boxes"]) == 1
