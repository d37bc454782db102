"""No test asks the network: what a hub or a server would answer is put in its place."""

import socket
import time
import urllib.error

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from huggingface_hub import utils
from safetensors.torch import save_file
from torchvision.models import _api

from tinyseed.checkpoints.load import load_model, load_teacher
from tinyseed.checkpoints.pretrained import build_pretrained
from tinyseed.errors import InputError, argument
from tinyseed.models.spec import ModelSpec


class NoNetwork:
    def head(self, url, timeout):
        assert timeout <= 10
        raise OSError("Name or service not known")


@pytest.fixture
def offline(monkeypatch):
    def fail(*arguments, **settings):
        assert socket.getdefaulttimeout() == 10
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(utils, "get_session", NoNetwork)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(_api, "load_state_dict_from_url", fail)


@pytest.mark.parametrize("name", ["resnet10t", "timm/resnet18.a1_in1k", "torchvision/squeezenet1_1"])
def test_offline_the_remedy_is_given_at_once(offline, name):
    load_model(ModelSpec("random:resnet10t", image_size=32))  # the libraries are imported
    started = time.monotonic()
    with pytest.raises(InputError) as caught, argument("teacher"):
        load_teacher(name, image_size=32)
    assert time.monotonic() - started < 5
    assert str(caught.value).startswith(f"teacher={name}: its pre-trained weights cannot be loaded (")
    assert str(caught.value).endswith(
        f"; give a file of its weights in place of the name, or random:{name} for random ones"
    )
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("replacement", ["file", "random"])
def test_the_remedy_works(offline, tmp_path, replacement):
    whole = timm.create_model("resnet10t")
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    name = tmp_path / "w.safetensors" if replacement == "file" else "random:resnet10t"
    assert load_model(name).backbone.name == load_teacher(name)._encoder.backbone.name == "resnet10t"


def test_a_model_without_pretrained_weights_is_reported(offline):
    name = next(name for name in timm.list_models() if not timm.get_pretrained_cfg(name).has_weights)
    with pytest.raises(InputError, match=rf"^{name}: timm has no pre-trained weights for it"):
        build_pretrained(ModelSpec(name))


def test_weights_in_the_hubs_cache_need_no_network(offline, monkeypatch, tmp_path):
    whole = timm.create_model("resnet10t").eval()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    cache = {("timm/resnet10t.c3_in1k", "model.safetensors"): str(tmp_path / "model.safetensors")}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repository, file: cache.get((repository, file))
    )
    batch = torch.randn(2, 3, 32, 32)
    model = load_model(ModelSpec("resnet10t", image_size=32))
    with torch.no_grad():
        wanted = whole.forward_head(whole.forward_features(batch), pre_logits=True)
        assert torch.equal(model.features(batch), wanted)
    assert model.input.size == 32


def test_a_broken_file_in_the_cache_is_reported(offline, monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    path = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: path)
    with pytest.raises(InputError, match=r"^resnet10t: its pre-trained weights cannot be loaded"):
        load_model(ModelSpec("resnet10t", image_size=32))


def test_torchvisions_weights_are_its_default_ones(offline, monkeypatch):
    whole = torchvision.models.squeezenet1_1().eval()
    asked = []

    def answer(url, *arguments, **settings):
        asked.append(url)
        return whole.state_dict()

    monkeypatch.setattr(_api, "load_state_dict_from_url", answer)
    teacher = load_teacher("torchvision/squeezenet1_1", image_size=64)
    assert asked == [torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url]
    batch = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(teacher.features(batch), whole.features(batch).mean(dim=(2, 3)))


def test_the_generator_is_left_alone(offline, monkeypatch):
    state = torchvision.models.squeezenet1_1().state_dict()
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *arguments, **settings: state)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    build_pretrained(ModelSpec("torchvision/squeezenet1_1", image_size=64))
    assert torch.equal(torch.rand(3), wanted)
