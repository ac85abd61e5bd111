import pytest

from experiments.config import check_numbers, read_config, setting


def test_the_last_setting_wins(tmp_path):
    for name, text in (("a", "backend: torch\ntrainer: {accelerator: cpu}"), ("b", "backend: triton"), ("c", "x: 1")):
        (tmp_path / name).write_text(text)
    a, b, c = (f"--config={tmp_path / name}" for name in "abc")
    assert setting(["fit", a, b, c], "backend", "auto") == "triton"
    assert setting(["fit", b, "-c", str(tmp_path / "a")], "backend", "auto") == "torch"
    assert setting(["fit", a, "--backend", "triton"], "backend", "auto") == "triton"
    assert setting(["fit", c], "backend", "auto") == "auto"
    assert setting(["fit", a, b], "trainer.accelerator", None) == "cpu"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("a: 1\nb: 2\na: 3\n", "has the key a twice, in lines 1 and 3", id="at the top"),
        pytest.param("a:\n  - x: 1\n    y: 2\n    x: 3\n", "has the key x twice, in lines 2 and 4", id="in a list"),
        pytest.param("a: {b: {c: 1, c: 1}}\n", "has the key c twice, in lines 1 and 1", id="in a line"),
    ],
)
def test_a_key_stands_once(tmp_path, text, says):
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_config(str(tmp_path / "it.yaml"))


def test_keys_of_different_mappings_may_be_the_same(tmp_path):
    (tmp_path / "it.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a, {x: 2}]\n1: one\n")
    content = {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}, {"x": 2}], 1: "one"}
    assert read_config(str(tmp_path / "it.yaml")) == content


@pytest.mark.parametrize(
    ("name", "number", "accepted"),
    [
        ("accumulate_grad_batches", 0, "at least 1"),
        ("check_val_every_n_epoch", 0, "at least 1"),
        ("check_val_every_n_epoch", -1, "at least 1"),
        ("val_check_interval", 0, "positive"),
        ("limit_train_batches", 0, "positive"),
        ("gradient_clip_val", -1.0, "at least 0"),
        ("gradient_clip_val", float("nan"), "at least 0"),
        ("log_every_n_steps", -1, "at least 0"),
        ("min_epochs", -1, "at least 0"),
        ("min_steps", -1, "at least 0"),
        ("num_sanity_val_steps", -2, "at least 0, or -1 for all"),
    ],
)
def test_numbers_of_the_trainer(name, number, accepted):
    with pytest.raises(ValueError, match=f"--trainer.{name} must be {accepted}, got {number}"):
        check_numbers({name: number})


def test_what_is_no_number_is_left_to_lightning():
    check_numbers({"val_check_interval": "00:00:10:00", "accumulate_grad_batches": None, "num_sanity_val_steps": -1})
