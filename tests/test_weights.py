"""Weights files: reading without running code, hashing, fetching."""

from __future__ import annotations

import argparse
import errno
import os
import pickle
import socket
import urllib.error
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from featx import weight_files, weights
from featx.errors import DiskError, WeightsError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub folder of the test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    assert weights.checkpoint_folder() == folder
    return folder


def _state():
    return {"conv.weight": torch.arange(6.0).reshape(1, 6), "conv.bias": torch.tensor([1.5])}


def _assert_same(state, expected):
    assert list(state) == list(expected)
    for key, tensor in expected.items():
        assert torch.equal(state[key], tensor)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"model_state_dict": s},
        lambda s: {"net": s},
        lambda s: {"weights": s},
        lambda s: {"params": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"_orig_mod.module.model.{k}": v for k, v in s.items()}},
        lambda s: {f"backbone.{k}": v for k, v in s.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_common_prefixes_are_taken_off(wrap, zipped, tmp_path):
    file = tmp_path / "a.pth"
    torch.save(wrap(_state()), file, _use_new_zipfile_serialization=zipped)
    _assert_same(weights.read_state_dict(file), _state())


def test_a_prefix_that_not_all_keys_share_stays(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "a.pth")
    _assert_same(weights.read_state_dict(tmp_path / "a.pth"), state)


def test_module_versions_are_kept_under_the_stripped_names(tmp_path):
    network = nn.Sequential(nn.BatchNorm2d(2))
    state = OrderedDict((f"module.{k}", v) for k, v in network.state_dict().items())
    plain = network.state_dict()._metadata
    state._metadata = {"": {}} | {f"module.{k}".rstrip("."): v for k, v in plain.items()}
    torch.save(state, tmp_path / "a.pth")
    assert weights.read_state_dict(tmp_path / "a.pth")._metadata == plain


def test_safetensors_files_are_read(tmp_path):
    save_file(_state(), tmp_path / "a.safetensors")
    state = weights.read_state_dict(tmp_path / "a.safetensors")
    _assert_same(dict(sorted(state.items(), reverse=True)), _state())


class _Exploit:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(writer, tmp_path):
    file, proof = tmp_path / "a.pth", tmp_path / "proof"
    content = {"state_dict": {"a": torch.ones(1), "b": _Exploit(proof)}}
    if writer == "pickle":
        content["state_dict"].pop("a")
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(
        WeightsError, match=r"pickled Python object \(\w+\.mkdir\)|plain Python pickle"
    ) as caught:
        weights.read_state_dict(file)
    assert not proof.exists()
    assert "\n" not in str(caught.value)
    assert "expected a state_dict" in str(caught.value)


def test_a_whole_pickled_network_is_refused_by_name(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(
        WeightsError, match=r"torch\.nn\.modules\.linear\.Linear.*does not run code"
    ):
        weights.read_state_dict(tmp_path / "a.pth")


def _truncated(tmp_path):
    torch.save(_state(), tmp_path / "whole.pth")
    return (tmp_path / "whole.pth").read_bytes()[:-300]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda _: b"", "is an empty file"),
        (lambda _: b"<!DOCTYPE html><p>not found", "is a web page"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file"),
        (lambda _: b"Hello, this is text", "is not a weights file; expected"),
        (lambda _: bytes(range(256)) * 9, "is not a weights file; expected"),
        (_truncated, r"is truncated or damaged \(\w"),
        (lambda _: b"\x80\x02\x8a\nl\xfc", r"is truncated or damaged \(\w"),
    ],
)
def test_a_file_that_is_no_weights_file_says_what_it_is(content, words, tmp_path):
    file = tmp_path / "a.pth"
    file.write_bytes(content(tmp_path))
    with pytest.raises(WeightsError, match=words) as caught:
        weights.read_state_dict(file)
    assert str(file) in str(caught.value)
    assert "expected a state_dict" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "lr": 0.1}, "holds no state dict: a dict with epoch, lr"),
        ({"state_dict": {"a": 1}}, "holds no state dict under 'state_dict'"),
        ({}, "a dict with nothing"),
        ([torch.ones(1)], "holds something of type list"),
        (torch.ones(3), "holds something of type Tensor"),
    ],
)
def test_a_file_of_other_objects_says_what_it_holds(content, words, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=words):
        weights.read_state_dict(tmp_path / "a.pth")


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    save_file(_state(), tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-4])
    with pytest.raises(WeightsError, match=r"not a whole \.safetensors file"):
        weights.read_state_dict(tmp_path / "a.safetensors")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        weights.read_state_dict(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        weights.read_state_dict(tmp_path)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"a" * (3 * 2**20 + 1))
    expected = __import__("hashlib").sha256(b"a" * (3 * 2**20 + 1)).hexdigest()
    assert weight_files.sha256_file(file) == expected


def test_the_hash_of_a_state_dict_sees_every_bit_name_type_and_shape_but_not_order_or_strides():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2).half()}
    same = dict(reversed(state.items())) | {"a": state["a"].t().contiguous().t()}
    assert weights.state_dict_sha256(same) == weights.state_dict_sha256(state)
    flipped = state["a"].clone()
    flipped[1, 2] = torch.nextafter(flipped[1, 2], torch.tensor(9.0))
    others = [
        state | {"a": flipped},
        state | {"a": state["a"].reshape(3, 2)},
        state | {"b": torch.tensor(3, dtype=torch.int32)},
        {("x" if k == "a" else k): v for k, v in state.items()},
        state | {"d": torch.zeros(0)},
    ]
    hashes = {weights.state_dict_sha256(other) for other in [state, *others]}
    assert len(hashes) == len(others) + 1
    # The format is part of caches' identity: it must never change.
    assert weights.state_dict_sha256({"a": torch.tensor([1.0, -2.0])}).startswith("0d709497bbe1")


def test_the_hash_digits_are_read_from_published_names():
    assert weights.hash_prefix("https://x/mnasnet0.5_top1_67.823-3ffadce67e.pth") == "3ffadce67e"
    assert weights.hash_prefix("https://x/vgg16_features-amdegroot-88682ab5.pth") == "88682ab5"
    assert weights.hash_prefix("https://x/model-final.pth") is None


def test_a_file_in_torch_hubs_folder_is_not_downloaded(hub, monkeypatch):
    hub.mkdir(parents=True)
    (hub / "a-12345678.pth").write_bytes(b"x")
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    assert weights.fetch("https://x/a-12345678.pth", label="a V1") == hub / "a-12345678.pth"


def _published(tmp_path, content=b"weights"):
    source = tmp_path / "source"
    source.write_bytes(content)
    named = tmp_path / f"net-{weight_files.sha256_file(source)[:8]}.pth"
    source.rename(named)
    return named


def test_a_download_lands_in_torch_hubs_folder(hub, tmp_path):
    named = _published(tmp_path)
    assert weights.fetch(named.as_uri(), label="net V1").read_bytes() == b"weights"
    assert [file.name for file in hub.iterdir()] == [named.name]


def test_a_download_of_other_bytes_is_refused_and_leaves_nothing(hub, tmp_path):
    named = _published(tmp_path)
    named.write_bytes(b"a proxy's login page")
    with pytest.raises(WeightsError, match=r"not the published file: invalid hash value"):
        weights.fetch(named.as_uri(), label="net V1")
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Name or service not known"),
        urllib.error.HTTPError("https://x", 403, "Forbidden", None, None),
        TimeoutError("timed out"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
    ],
)
def test_weights_that_cannot_be_downloaded_say_where_to_put_the_file(hub, monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError) as caught:
        weights.fetch("https://x.org/models/net-12345678.pth", label="net IMAGENET1K_V1")
    text = str(caught.value)
    for part in (
        "weights of net IMAGENET1K_V1 are not on this machine and cannot be downloaded",
        "file:    net-12345678.pth",
        "address: https://x.org/models/net-12345678.pth",
        f"folder:  {hub}",
        "--weights PATH",
        "--weights random",
    ):
        assert part in text
    assert caught.value.exit_code == 7
    if isinstance(failure, urllib.error.HTTPError):
        failure.close()


def test_a_full_disk_while_downloading_is_a_disk_error(hub, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(DiskError, match=r"No space left on device.*TORCH_HOME"):
        weights.fetch("https://x.org/net-12345678.pth", label="net V1")


def test_a_download_waits_at_most_half_a_minute_for_an_answer_and_restores_the_limit(
    hub, monkeypatch
):
    seen = []

    def note(url, target, *args, **kwargs):
        seen.append(socket.getdefaulttimeout())
        Path(target).write_bytes(b"x")

    monkeypatch.setattr(torch.hub, "download_url_to_file", note)
    before = socket.getdefaulttimeout()
    weights.fetch("https://x.org/net.pth", label="net V1")
    assert seen == [30.0]
    assert socket.getdefaulttimeout() == before


def test_a_file_whose_bytes_are_not_those_of_its_name_is_refused(tmp_path):
    url = "https://x.org/net-12345678.pth"
    weights.check_published_hash(tmp_path / "a", "12345678" + "0" * 56, url)
    with pytest.raises(WeightsError, match=r"begins with aaaaaaaa, but .* 12345678 .*delete it"):
        weights.check_published_hash(tmp_path / "a", "a" * 64, url)
