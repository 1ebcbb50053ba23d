"""Tests of featx.heads.file and featx.heads.contents."""

import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import featx.heads.file
from featx.errors import DiskError, HeadError, InputError
from featx.heads import (
    HEADS,
    CentroidHead,
    KNNHead,
    LinearHead,
    LogisticHead,
    MLPHead,
    RidgeHead,
    load_head,
    save_head,
)
from featx.heads.contents import canonical, digest_of

NAMES = ("Grue cendrée", "麻雀", "crow")


def birds(k=3, n=60, d=5):
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    return rng.normal(size=(n, d)) + 2 * rng.normal(size=(k, d))[y], y


FITTED = [
    LogisticHead(cs=(0.1, 1.0), cv=2, device="cpu").fit(*birds()),
    LogisticHead(C=1.0, class_weight={0: 1.0, 1: 2.0}, device="cpu").fit(*birds(2)),
    LinearHead(epochs=3, device="cpu").fit(*birds()),
    MLPHead((6, 4), epochs=3, device="cpu").fit(*birds()),
    RidgeHead(device="cpu").fit(*birds()),
    KNNHead(device="cpu").fit(*birds()),
    CentroidHead("cosine", device="cpu").fit(*birds()),
]
IDS = ["logistic", "logistic of two classes", "linear", "mlp", "ridge", "knn", "centroid"]
each_head = pytest.mark.parametrize("head", FITTED, ids=IDS)


FACTS_OF_AN_OLD_HEAD = {"best_epoch_": 1, "n_set_aside_": 6, "history_": [], "device_": "cpu"}


def hashes(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32), np.uint8)


def saved(path, head=FITTED[0], **keywords):
    names = NAMES[: len(head.classes_)]
    split = {"train": hashes(4), "held_out": hashes(2, seed=1)}
    return save_head(path, head, classes=names, split=split, **keywords)


@each_head
def test_a_loaded_head_is_the_head_that_was_saved(head, tmp_path):
    metadata = {"cache": {"fingerprint": "ab12"}, "list": [1, 2.5, None, "ü"]}
    file = load_head(saved(tmp_path / "a.safetensors", head, metadata=metadata))
    X, _ = birds()
    assert HEADS[file.kind] is type(file.head) is type(head)
    assert file.path == tmp_path / "a.safetensors"
    assert file.classes == NAMES[: len(head.classes_)]
    assert file.metadata == metadata
    assert file.head.predict_proba(X).tobytes() == head.predict_proba(X).tobytes()
    assert np.array_equal(file.head.predict(X), head.predict(X))
    assert file.head.get_params() == head.get_params()
    for name in head.FACTS:
        assert getattr(file.head, name) == getattr(head, name), name
    assert np.array_equal(file.split["train"], hashes(4))
    assert np.array_equal(file.split["held_out"], hashes(2, seed=1))
    assert file.split["val"].shape == (0, 32)
    assert file.split["val"].dtype == np.uint8


@each_head
def test_a_loaded_head_can_be_fitted_and_saved_again(head, tmp_path):
    file = load_head(saved(tmp_path / "a.safetensors", head))
    again = saved(tmp_path / "b.safetensors", file.head)
    assert again.read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    file.head.fit(*birds(len(head.classes_)))
    assert saved(tmp_path / "c.safetensors", file.head).read_bytes() == again.read_bytes()


def test_the_same_head_gives_the_same_bytes(tmp_path):
    first = saved(tmp_path / "a.safetensors", metadata={"x": 1, "a": {"q": 1, "b": 2}})
    other = saved(tmp_path / "b.safetensors", metadata={"a": {"b": 2, "q": 1}, "x": 1})
    assert first.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("labels", [["wren", "crow", "tit"], [-5, 7, 300], ["a\0", "b", "c"]])
def test_labels_come_back_as_they_were(labels, tmp_path):
    X, y = birds()
    head = LogisticHead(C=1.0).fit(X, np.array(labels, object if "a\0" in labels else None)[y])
    back = load_head(saved(tmp_path / "a.safetensors", head)).head
    assert back.classes_.tolist() == sorted(labels)


def test_class_names_that_are_no_unicode_survive(tmp_path):
    odd = os.fsdecode(b"caf\xe9")  # a Latin-1 folder name on Linux
    path = save_head(tmp_path / "a.safetensors", FITTED[0], classes=[odd, "b", "c"])
    assert load_head(path).classes[0] == odd


def test_strided_and_fortran_arrays_are_saved_as_their_values(tmp_path):
    head = pickle.loads(pickle.dumps(FITTED[0]))
    head.coef_ = np.asfortranarray(head.coef_)
    split = {"train": np.repeat(hashes(8), 2, axis=0)[::2]}
    file = load_head(save_head(tmp_path / "a.safetensors", head, classes=NAMES, split=split))
    assert np.array_equal(file.head.coef_, FITTED[0].coef_)
    assert np.array_equal(file.split["train"], hashes(8))


# Writing


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"cannot write .*a\.safetensors: the disk is full"):
        saved(path, FITTED[2])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_synced_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append("fsync"), fsync(d)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    saved(tmp_path / "a.safetensors")
    assert calls[:2] == ["fsync", "replace"]


def test_a_missing_folder_is_made_and_one_that_cannot_be_is_a_disk_error(tmp_path):
    assert saved(tmp_path / "new" / "a.safetensors").is_file()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match=r"cannot write .*: a file is in the way"):
        saved(tmp_path / "file" / "a.safetensors")


def nan_head():
    head = pickle.loads(pickle.dumps(FITTED[0]))
    head.coef_ = head.coef_ * np.nan
    return head


@pytest.mark.parametrize(
    ("head", "keywords", "message"),
    [
        (
            LogisticHead(),
            {},
            "a fitted logistic, linear, mlp, ridge, knn, centroid, tail head, got LogisticHead",
        ),
        (
            "head",
            {},
            "a fitted logistic, linear, mlp, ridge, knn, centroid, tail head, got 'head'",
        ),
        (FITTED[0], {"classes": ["a", "b"]}, "it names 2 classes for 3 labels"),
        (FITTED[0], {"classes": ["a", "b", "b"]}, "class names are not different strings"),
        (FITTED[0], {"split": {"test": hashes(1)}}, "split has a part 'test'; its parts are train"),
        (FITTED[0], {"split": {"val": np.zeros((3, 20), np.uint8)}}, r"got shape \(3, 20\)"),
        (FITTED[0], {"split": {"val": np.zeros((3, 32))}}, "got shape .* and type float64"),
        (FITTED[0], {"metadata": {"x": float("nan")}}, "metadata or parameters are not JSON"),
        (FITTED[0], {"metadata": {"x": {1, 2}}}, "metadata or parameters are not JSON"),
        (nan_head(), {}, "cannot be saved: tensor 'coef' holds values that are not finite"),
        (LogisticHead(C=1.0).fit(birds()[0], birds()[1] > 0), {}, "labels that are whole numbers"),
    ],
    ids=range(11),
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_written(
    head, keywords, message, tmp_path
):
    with pytest.raises(InputError, match=message):
        save_head(tmp_path / "a.safetensors", head, **{"classes": NAMES} | keywords)
    assert list(tmp_path.iterdir()) == []


# Reading what is damaged


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small head file."""
    return saved(tmp_path_factory.mktemp("head") / "a.safetensors", FITTED[3]).read_bytes()


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(HeadError) as told:
        load_head(path)
    message = str(told.value)
    assert "\n" not in message
    assert str(path) in message
    return message


quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refused_or_the_same(path, data, whole):
    """A flip that JSON cannot see (a blank that pads, the case of \\u00e9) may pass."""
    path.write_bytes(data)
    try:
        file = load_head(path)
    except HeadError as told:
        return str(path) in str(told) and "\n" not in str(told)
    return saved(path, file.head).read_bytes() == whole and file.classes == NAMES


@given(data=st.data())
@quick
def test_any_flipped_byte_is_found_or_changes_nothing(data, whole, tmp_path):
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    assert refused_or_the_same(tmp_path / "x.safetensors", bytes(damaged), whole)


def test_every_byte_of_the_tensors_and_hashes_is_covered(whole, tmp_path):
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in range(start, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        refusal(tmp_path / "x.safetensors", bytes(damaged))


@given(data=st.data())
@quick
def test_any_truncation_is_found(data, whole, tmp_path):
    refusal(tmp_path / "x.safetensors", whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(data=st.binary(max_size=300))
@quick
def test_garbage_is_refused(data, tmp_path):
    refusal(tmp_path / "x.safetensors", data)


def test_bytes_added_are_found(whole, tmp_path):
    refusal(tmp_path / "x.safetensors", whole + b"\0")


def test_a_huge_header_is_refused_before_it_is_read(whole, tmp_path):
    message = refusal(tmp_path / "x.safetensors", (2**62).to_bytes(8, "little") + whole[8:])
    assert "is not a head file, or is damaged" in message


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    refusal(tmp_path / "x.safetensors", pickle.dumps(Trap()))
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_and_a_folder_are_no_head_files(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(HeadError, match=r"there is no head file .* `featx fit-head`"):
            load_head(path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    data = safetensors.numpy.save({"weight": np.zeros(3)}, {"format": "pt"})
    assert "not of a featx head" in refusal(tmp_path / "x.safetensors", data)


# Reading what was made to harm: the digest is right, the contents are not


def opened(path):
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["featx"])
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def forged(path, header, tensors):
    """A head file of whatever contents, with the digest that fits them."""
    try:
        header = header | {"digest": digest_of(header, tensors)}
        text = canonical(header)
    except (ValueError, TypeError):
        text = json.dumps(header)
    path.write_bytes(safetensors.numpy.save(tensors, {"featx": text}))
    return path


def parts(tmp_path, head=FITTED[3]):
    return opened(saved(tmp_path / "a.safetensors", head))


def test_a_forged_file_with_nothing_changed_is_accepted(tmp_path):
    assert load_head(forged(tmp_path / "f.safetensors", *parts(tmp_path))).kind == "mlp"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"it has format 2, .* up to 1: upgrade featx"),
        ({"format": 0}, "its format is 0, not 1"),
        ({"format": True}, "its format is True, not 1"),
        ({"format": "1"}, "its format is '1', not 1"),
        (
            {"kind": "os.system"},
            "its kind is 'os.system'; this featx knows logistic, linear, mlp, ridge",
        ),
        ({"kind": ["mlp"]}, "its metadata lack or garble kind"),
        ({"extra": 1}, "its metadata lack or garble a field"),
        ({"params": {}}, "its tensors are not those of such a head"),
        ({"params": {"wings": 2}}, "its parameters do not fit head 'mlp': wings too many"),
        ({"labels": [0, 1]}, "it names 3 classes for 2 labels"),
        ({"labels": [0, 2, 1]}, "its labels are not sorted, or not different"),
        ({"labels": [0, 1, 1]}, "its labels are not sorted, or not different"),
        ({"labels": [0, 1, "2"]}, "its labels are neither all whole numbers nor all strings"),
        ({"labels": [0, 1, 2**70]}, "its labels are neither"),
        ({"labels": [0, 1, None]}, "its labels are neither"),
        ({"classes": ["a", "b", 3]}, "its class names are not different strings"),
        ({"classes": ["a"], "labels": [1]}, "it names 1 classes for 1 labels"),
        ({"n_features": 6}, r"tensor 'mean' is \(5,\) float64, expected \(6,\)"),
        ({"n_features": -1}, "it says it has -1 features"),
        ({"n_features": 5.0}, "its metadata lack or garble n_features"),
        ({"facts": {}}, "what it says of its fit is incomplete"),
        ({"facts": FACTS_OF_AN_OLD_HEAD | {"wings_": 2}}, "is incomplete, or too much"),
        ({"metadata": []}, "its metadata lack or garble metadata"),
        ({"metadata": {"x": float("nan")}}, "its metadata are not JSON .NaN is no JSON"),
        ({"classes": ["a", "b", "c"], "digest": 5}, None),
    ],
    ids=str,
)
def test_hostile_metadata_are_refused(changes, message, tmp_path):
    header, tensors = parts(tmp_path)
    path = forged(tmp_path / "f.safetensors", header | changes, tensors)
    if message is None:  # the digest was put right again
        assert load_head(path).classes == ("a", "b", "c")
        return
    with pytest.raises(HeadError, match=message):
        load_head(path)


@pytest.mark.parametrize(
    ("head", "since", "defaults"),
    [
        (FITTED[2], {"lr_", "lr_results_", "lr_history_"}, {"schedule": "constant"}),
        (FITTED[3], {"seed_", "seed_results_"}, {"n_seeds": 1}),
    ],
    ids=["linear", "mlp"],
)
def test_a_file_older_than_a_parameter_or_a_fact_is_loaded(head, since, defaults, tmp_path):
    header, tensors = parts(tmp_path, head)
    for name in defaults:
        del header["params"][name]
    for name in since:
        del header["facts"][name]
    old = load_head(forged(tmp_path / "old.safetensors", header, tensors)).head
    assert old.get_params() == head.get_params() | defaults
    assert [getattr(old, name) for name in since] == [None] * len(since)
    assert old.history_ == head.history_
    assert np.array_equal(old.predict_proba(birds()[0]), head.predict_proba(birds()[0]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden", [6, 5], r"tensor 'coef.1' is \(4, 6\) float32, expected \(5, 6\)"),
        ("hidden", [6], "coef.2, intercept.2 too many or missing"),
        ("hidden", [6, -4], "a parameter cannot be used: hidden must be"),
        ("hidden", "__import__('os')", "a parameter cannot be used: hidden must be"),
        ("dropout", 7, "a parameter cannot be used: dropout must be 0 to below 1, got 7"),
        ("lr", 10**400, "a parameter cannot be used: lr must be"),
        ("lr", {"pairs": [[[1], 2]]}, "its pairs are garbled"),
        ("device", {"a": 1}, "a parameter cannot be used: device must be"),
        ("__class__", "x", "its parameters do not fit head 'mlp': __class__ too many"),
    ],
    ids=str,
)
def test_hostile_parameters_are_refused(name, value, message, tmp_path):
    header, tensors = parts(tmp_path)
    header["params"][name] = value
    with pytest.raises(HeadError, match=message):
        load_head(forged(tmp_path / "f.safetensors", header, tensors))


@pytest.mark.parametrize(
    ("name", "value"),
    [("history_", [{"epoch": "x"}]), ("history_", 3), ("best_epoch_", True), ("device_", None)],
)
def test_garbled_facts_are_refused(name, value, tmp_path):
    header, tensors = parts(tmp_path)
    header["facts"][name] = value
    with pytest.raises(HeadError, match=f"garbled: {name} is no"):
        load_head(forged(tmp_path / "f.safetensors", header, tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": np.zeros((0, 5), np.float32), "labels": np.zeros(0, np.int64)}, "has 0 training"),
        ({"rows": np.zeros((59, 5), np.float32)}, "has 59 training rows and 60 labels of them"),
        ({"rows": np.zeros((60, 4), np.float32)}, r"expected \(None, 5\) float32"),
        ({"rows": np.full((60, 5), 0.5, np.float32)}, "its training rows are longer than 1"),
        ({"rows": np.full((60, 5), np.inf, np.float32)}, "'rows' holds values that are not finite"),
        ({"labels": np.full(60, -1)}, "labels of its training rows are no classes of it"),
        ({"labels": np.full(60, 3)}, "labels of its training rows are no classes of it"),
        ({"labels": np.zeros(60)}, r"expected \(None,\) int64"),
    ],
    ids=range(8),
)
def test_hostile_training_rows_are_refused(changes, message, tmp_path):
    header, tensors = parts(tmp_path, FITTED[5])
    with pytest.raises(HeadError, match=message):
        load_head(forged(tmp_path / "f.safetensors", header, tensors | changes))


@pytest.mark.parametrize("value", [0, -3, True, 1.5, "1", None, 10**400])
def test_a_number_of_neighbours_that_no_fit_gives_is_refused(value, tmp_path):
    header, tensors = parts(tmp_path, FITTED[5])
    header["facts"]["n_neighbors_"] = value
    with pytest.raises(HeadError, match="garbled: n_neighbors_ is no positive count"):
        load_head(forged(tmp_path / "f.safetensors", header, tensors))


def test_more_neighbours_than_rows_are_all_rows(tmp_path):
    header, tensors = parts(tmp_path, FITTED[5])
    header["facts"]["n_neighbors_"] = 10**20
    p = load_head(forged(tmp_path / "f.safetensors", header, tensors)).head.predict_proba(
        birds()[0]
    )
    assert np.isfinite(p).all()


@pytest.mark.parametrize("value", [0, -1.0, True, "1", 1e-200, 1e200, 10**400, None])
def test_a_temperature_that_no_fit_gives_is_refused(value, tmp_path):
    header, tensors = parts(tmp_path, FITTED[4])
    header["facts"]["temperature_"] = value
    with pytest.raises(HeadError, match="garbled: temperature_ is no positive number"):
        load_head(forged(tmp_path / "f.safetensors", header, tensors))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("coef.0", np.zeros((6, 6), np.float32), r"expected \(6, 5\) float32"),
        ("coef.0", np.zeros((6, 5), np.float64), "float64, expected .* float32"),
        ("coef.0", np.zeros((6, 5), np.int8), "tensor 'coef.0' has the unknown type I8"),
        ("coef.0", np.full((6, 5), np.inf, np.float32), "values that are not finite"),
        ("mean", np.full(5, np.nan), "tensor 'mean' holds values that are not finite"),
        ("scale", np.zeros(5), "tensor 'scale' holds values that are not above 0"),
        ("split.train", np.zeros((4, 31), np.uint8), r"expected \(None, 32\) uint8"),
        ("split.train", np.zeros(32, np.uint8), r"expected \(None, 32\) uint8"),
        ("more", np.zeros(2), "more too many or missing"),
        ("mean", None, "mean too many or missing"),
    ],
    ids=range(10),
)
def test_hostile_tensors_are_refused(name, value, message, tmp_path):
    header, tensors = parts(tmp_path)
    tensors = {k: v for k, v in (tensors | {name: value}).items() if v is not None}
    with pytest.raises(HeadError, match=message):
        load_head(forged(tmp_path / "f.safetensors", header, tensors))


def test_an_edit_without_the_digest_is_found(tmp_path):
    header, tensors = parts(tmp_path)
    header["classes"].reverse()
    path = tmp_path / "f.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, {"featx": canonical(header)}))
    with pytest.raises(HeadError, match="the file was damaged or edited"):
        load_head(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "7", "", '{"format": 1e999}', "\ud83d"])
def test_json_bombs_and_non_objects_are_refused(text, tmp_path):
    path = tmp_path / "f.safetensors"
    text = text.encode("utf-8", "replace").decode()
    path.write_bytes(safetensors.numpy.save({"mean": np.zeros(1)}, {"featx": text}))
    with pytest.raises(HeadError, match="cannot be used as a head: its"):
        load_head(path)


def test_a_number_too_large_for_a_float_is_refused(tmp_path):
    header, tensors = parts(tmp_path)
    text = canonical(header | {"metadata": {"x": 1.5}}).replace('"x":1.5', '"x":1e999')
    path = tmp_path / "f.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, {"featx": text}))
    with pytest.raises(HeadError, match="its metadata are not JSON"):
        load_head(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def all_parts(tmp_path_factory):
    """Header and tensors of every head, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("heads")
    return [opened(saved(folder / "a.safetensors", head)) for head in FITTED]


@given(data=st.data())
@quick
def test_whatever_json_is_put_in_only_a_head_error_or_a_working_head_comes_out(
    data, all_parts, tmp_path
):
    header, tensors = copy.deepcopy(data.draw(st.sampled_from(all_parts)))
    place = header
    for part in data.draw(st.sampled_from([[], ["params"], ["facts"], ["params"], ["facts"]])):
        place = place[part]
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(json_values)
    path = forged(tmp_path / "f.safetensors", header, tensors)
    try:
        file = load_head(path)
    except HeadError:
        return
    assert file.head.predict_proba(birds()[0]).shape == (60, len(file.classes))


def test_a_head_fitted_on_a_gpu_predicts_where_there_is_none(tmp_path):
    header, tensors = parts(tmp_path)
    header["params"]["device"] = "cuda:7"
    file = load_head(forged(tmp_path / "f.safetensors", header, tensors))
    assert np.array_equal(file.head.predict_proba(birds()[0]), FITTED[3].predict_proba(birds()[0]))


def test_every_head_has_a_kind_that_loading_knows():
    assert featx.heads.file.HEADS is HEADS
    assert [cls.__name__ for cls in HEADS.values()] == [
        "LogisticHead",
        "LinearHead",
        "MLPHead",
        "RidgeHead",
        "KNNHead",
        "CentroidHead",
    ]
