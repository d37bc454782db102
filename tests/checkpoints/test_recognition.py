"""Which network of a file is meant: entries, prefixes, averaged models, heads in place of classifiers."""

import argparse
import collections
import os
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from tinyseed.checkpoints.load import describe_model, load_model, load_teacher
from tinyseed.checkpoints.public import load_file
from tinyseed.checkpoints.signatures import nearest
from tinyseed.errors import InputError, argument
from tinyseed.models.backbones import build_backbone
from tinyseed.models.libraries import create_on_meta
from tinyseed.models.spec import ModelSpec


@pytest.fixture(scope="module")
def resnet():
    """A ResNet-18 without classifier, with random weights."""
    torch.manual_seed(0)
    network = models.resnet18()
    network.fc = nn.Identity()
    return network.state_dict()


@pytest.fixture
def saved(tmp_path):
    def save(content, **settings):
        torch.save(content, tmp_path / "w.pth", **settings)
        return tmp_path / "w.pth"

    return save


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def mlp(hidden, dim):
    layers = nn.Sequential(nn.Linear(512, hidden), nn.ReLU(), nn.Linear(hidden, dim))
    return under("fc.", layers.state_dict())


def refused(path, **fields):
    names = {name: f"teacher_{name}" for name in ("arch", "prefix", "output", "mean", "std")}
    with pytest.raises(InputError) as caught, argument("teacher", **names):
        describe_model(path, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "student.", "a.b.c."]
PREFIXES += [
    "module._orig_mod.",
    "_orig_mod.module.",
    "model._orig_mod.",
    "module.model.net.",
    "model.module.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", ["", "state_dict", "net"])
def test_prefixes_that_all_tensors_share_are_removed(saved, resnet, prefix, wrapper):
    state = under(prefix, resnet)
    path = saved({wrapper: state, "epoch": 3} if wrapper else state)
    encoder = load_model(path)
    assert encoder.backbone.name == "torchvision/resnet18"
    assert all(
        torch.equal(value, resnet[name]) for name, value in encoder.backbone.network.state_dict().items()
    )
    method = describe_model(path).method
    assert method == "state dict"


def foreign_module():
    """Classes of a package that is not installed where the file is read."""
    module = types.ModuleType("omegaconf_like")
    exec(
        "class DictConfig:\n"
        "    def __init__(self): self._content = {'lr': 1}\n"
        "class EasyDict(dict): pass\n"
        "class Flags(list): pass\n",
        module.__dict__,
    )
    for name in ("DictConfig", "EasyDict", "Flags"):
        getattr(module, name).__module__ = "omegaconf_like"
    return module


@pytest.fixture
def foreign(monkeypatch):
    module = foreign_module()
    monkeypatch.setitem(sys.modules, "omegaconf_like", module)
    return module


BESIDE = {
    "tensor": lambda _: {"best_acc1": torch.tensor(55.5), "loss_history": torch.ones(7)},
    "numpy": lambda _: {"best": np.float64(3.5), "seen": np.int64(2), "curve": np.ones((2, 3))},
    "namespace": lambda _: {
        "args": argparse.Namespace(lr=1.0, out=pathlib.Path("/tmp"), rest=argparse.Namespace())
    },
    "config": lambda module: {
        "cfg": module.DictConfig(),
        "hyper_parameters": module.EasyDict(a=module.EasyDict(b=1)),
    },
    "containers": lambda module: {
        "flags": module.Flags([1, 2]),
        "counts": collections.defaultdict(list, a=[1]),
    },
    "training": lambda _: {
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
        "lr_schedulers": [{"base": torch.ones(2)}],
        "grad_scaler": {"scale": torch.ones(1)},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}},
        "criterion": {"weight": torch.ones(9, 9)},
        "rng_state": torch.ones(16, dtype=torch.uint8),
    },
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "ema_state_dict", "weights"])
def test_what_is_saved_beside_the_weights_refuses_no_file(saved, resnet, foreign, beside, key):
    path = saved({"epoch": 4, key: resnet, **BESIDE[beside](foreign)})
    described = describe_model(path)
    assert (described.architecture, described.epochs) == ("torchvision/resnet18", 4)
    assert described.used["trunk"] == 120


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_classes_are_never_looked_up(saved, resnet, foreign, zipped, monkeypatch):
    path = saved({"state_dict": resnet, "cfg": foreign.DictConfig()}, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "omegaconf_like")
    assert describe_model(path).architecture == "torchvision/resnet18"
    assert "omegaconf_like" not in sys.modules


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, __import__, open, sys.exit])
def test_functions_of_the_standard_library_are_code(saved, resnet, function, tmp_path):
    path = saved({"state_dict": resnet, "x": Call(function, f"touch {tmp_path / 'executed'}")})
    assert "which only running its code could load" in refused(path)
    assert not (tmp_path / "executed").exists()


def test_averaged_models(saved, resnet):
    averaged = torch.optim.swa_utils.AveragedModel(models.resnet18())
    described = describe_model(saved(averaged.state_dict()))
    assert (described.architecture, described.unused) == (
        "torchvision/resnet18",
        {"n_averaged": 1, "classifier": 2},
    )
    shifted = {name: value + 1 for name, value in resnet.items()}
    path = saved({"model": resnet, "model_ema": under("module.", shifted)})
    message = refused(path)
    assert "holds several networks ('model', 'model_ema')" in message
    assert "give `teacher_prefix` model" in message
    for prefix, wanted in {"model": resnet, "model_ema": shifted}.items():
        given = load_model(ModelSpec(path, prefix=prefix)).backbone.network.state_dict()
        assert all(torch.equal(given[name], value) for name, value in wanted.items())
    path = saved(
        {"teacher": under("module.", shifted), "student": resnet}
    )  # a teacher wins, as in DINO's code
    assert torch.equal(load_model(path).backbone.network.state_dict()["bn1.bias"], shifted["bn1.bias"])


def test_several_layers_in_place_of_a_classifier_are_asked_about(saved, resnet):
    for prefix in ("", "backbone.model.", "module."):
        path = saved(under(prefix, resnet | mlp(64, 10)))
        message = refused(path)
        assert "its head, or to be left out? Give `teacher_output` head or backbone" in message
        described = describe_model(path, output="head")
        assert (described.head, described.dim, described.used["head"]) == ("mlp", 10, 4)
        described = describe_model(path, output="backbone")
        assert (described.head, described.unused) == ("none", {"classifier": 4})
    # One layer is a classifier, also behind dropout.
    for place in ("fc", "fc.1"):
        single = {f"{place}.weight": torch.ones(10, 512), f"{place}.bias": torch.ones(10)}
        assert describe_model(saved(resnet | single)).unused == {"classifier": 2}


def test_a_file_that_holds_itself_or_the_same_twice_has_one_network(saved, resnet):
    content = {"state_dict": resnet, "again": resnet, "epoch": 2}
    content["self"] = content
    assert describe_model(saved(content)).architecture == "torchvision/resnet18"


def test_a_part_is_chosen_by_its_prefix(saved, resnet):
    other = {name: value + 1 for name, value in resnet.items()}
    heads = [mlp(512, 24), {name: value + 1 for name, value in mlp(512, 24).items()}]
    state = under("module.encoder_q.", resnet | heads[0]) | under("module.encoder_k.", other | heads[1])
    path = saved({"state_dict": state | {"module.queue": torch.ones(24, 8)}})
    for prefix, backbone, head in (("encoder_q", resnet, heads[0]), ("encoder_k.", other, heads[1])):
        encoder = load_model(ModelSpec(path, prefix=prefix))
        given = encoder.backbone.network.state_dict()
        assert all(torch.equal(given[name], value) for name, value in backbone.items())
        assert all(
            torch.equal(encoder.projector.state_dict()[n.removeprefix("fc.")], v) for n, v in head.items()
        )
        described = describe_model(path, prefix=prefix)
        assert described.method == "MoCo v2"
        assert sum(described.used.values()) + sum(described.unused.values()) == 2 * 124 + 1
    message = refused(path, prefix="encoder")
    assert message.startswith("teacher_prefix=encoder: ")
    assert "it has encoder_k, encoder_q, queue" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved, resnet, value):
    for name in ("layer2.0.conv1.weight", "bn1.running_var"):
        broken = resnet[name].clone()
        broken.view(-1)[3] = value
        assert name in refused(saved(resnet | {name: broken}))


def test_an_unknown_file_names_the_part_that_is_a_network(saved, resnet):
    path = saved(under("online.", resnet) | under("decoder.", {"0.weight": torch.ones(3, 3)}))
    assert "give `teacher_prefix` online" in refused(path)
    assert load_model(ModelSpec(path, prefix="online")).backbone.name == "torchvision/resnet18"
    path = saved(under("net.", {name.replace("layer4", "layer5"): value for name, value in resnet.items()}))
    message = refused(path)
    for part in (
        str(path),
        "under 'net'",
        "nearest is torchvision/resnet18",
        "`teacher_arch` torchvision/resnet18",
    ):
        assert part in message
    assert "fits no architecture" in refused(saved({"a.b": torch.ones(2, 2), "c.d": torch.ones(2)}))


def test_what_comes_nearest_is_found_for_networks_that_compute_with_their_weights():
    # torchvision's RegNets cannot be built on the meta device as others are.
    made = create_on_meta("torchvision", "regnet_y_400mf")
    assert all(parameter.is_meta for parameter in made.network.parameters())
    state = {name.replace("stem", "stam"): value for name, value in made.network.state_dict().items()}
    found = nearest(state)
    assert found is not None
    assert found[0] == "torchvision/regnet_y_400mf"
    assert len(found[1]["missing"]) == 5


def test_mean_std_and_interpolation_are_chosen(saved, resnet):
    path = saved(resnet)
    given = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "interpolation": "bicubic"}
    teacher = load_teacher(path, **given)
    assert (teacher.mean, teacher.std, teacher.input.interpolation) == tuple(given.values())
    assert load_model(ModelSpec("random:resnet10t", mean=(0, 0, 0))).input.mean == (0, 0, 0)
    assert "give 3 numbers, one for each" in refused(path, mean=(0.5,))
    assert refused(path, std=(0.5, 0.5)).startswith("teacher_std=0.5 0.5: the model sees 3 channels")


ROWS = [
    # Student, width of its features, whether small patches were used: the rows of the table of SEED's README.
    ("torchvision/resnet18", 512, False),
    ("torchvision/resnet18", 512, True),
    ("seed/mobilenetv3_large", 1280, False),
    ("seed/efficientnet_b0", 1280, True),
    ("seed/efficientnet_b1", 1280, False),
    ("torchvision/resnet50", 2048, True),
]


@pytest.mark.parametrize(("student", "width", "small"), ROWS)
def test_each_row_of_seeds_readme_loads(saved, student, width, small):
    network = build_backbone(student, seed=0).network.state_dict()
    teacher = {"conv1.weight": torch.ones(64, 3, 7, 7), "projection_head.0.weight": torch.ones(9, 2048)}
    layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128)).state_dict()
    state = under("student.", network | under("fc.", layers)) | under("teacher.", teacher)
    queues = ["queue", "small_queue"] if small else ["queue"]
    state |= {queue: torch.ones(128, 4) for queue in queues} | {
        "queue_ptr": torch.zeros(1, dtype=torch.int64)
    }
    encoder, described = load_file(
        saved({"epoch": 400, "state_dict": under("module.", state)}), ModelSpec("x")
    )
    assert (described.method, described.architecture, described.dim) == ("SEED", student, 128)
    given = encoder.backbone.network.state_dict()
    assert all(torch.equal(given[name], value) for name, value in network.items())
    assert described.unused == {"teacher": 2, "queue_ptr": 1} | dict.fromkeys(queues, 1)
