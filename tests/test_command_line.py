"""How commands end: an exit code, and one line where it is not 0."""

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from absl import flags

from mlic_jax import recipes
from mlic_jax.command_line import Parser, asked_of_config, exit_code, hush_strays, parse_flags
from mlic_jax.errors import Failure, UsageError


def ending(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no such option"), 2, "error: no such option"),
        (Failure("the image is damaged"), 1, "error: the image is damaged"),
        (KeyboardInterrupt(), 130, "error: interrupted; what was saved stays"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/metrics.jsonl"),
            1,
            "error: run/metrics.jsonl: No space left on device; what was saved stays",
        ),
        (MemoryError("Unable to allocate 10 TiB"), 1, "error: memory is full; fewer photos"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1, "error: memory is full; fewer"),
        (OSError("no more"), 1, "error: no more; what was saved stays"),
    ],
)
def test_an_error_is_one_line(error, code, line, capsys):
    assert exit_code(ending(error)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1


def test_a_line_has_an_end_whatever_a_file_is_called(capsys):
    assert exit_code(ending(Failure("no file " + "a\n" * 50_000))) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and len(printed) < 6000
    assert printed.endswith("... (98008 characters more)\n")


def test_what_nobody_expected_keeps_its_traceback_and_ends_all_the_same(capsys):
    assert exit_code(ending(KeyError("boxes"))) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.splitlines()[-1] == "error: KeyError, which should not be: 'boxes'"


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (3, 3), ("said", 1)])
def test_an_exit_of_a_library_is_passed_on(code, expected):
    assert exit_code(ending(SystemExit(code))) == expected


def test_success_is_0_whatever_the_command_returns(capsys):
    assert exit_code(lambda: {"a": "value"}) == 0
    assert capsys.readouterr() == ("", "")


def parsed_by_argparse(*words):
    parser = Parser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("input", type=Path)
    return parser.parse_args(words)


def parsed_by_absl(*words):
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "", flag_values=values)
    return parse_flags(["program", *words], values)


@pytest.mark.parametrize("parse", [parsed_by_argparse, parsed_by_absl])
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--out=gs://bucket/run", "photos"), "--out=gs://bucket/run"),
        (("--out", "s3://bucket/run", "photos"), "s3://bucket/run"),
        (("--out=run", "FILE:///photos"), "FILE:///photos"),
    ],
)
def test_an_address_is_no_path(parse, words, named):
    with pytest.raises(UsageError) as refused:
        parse(*words)
    assert str(refused.value).startswith(f"{named} is no path of this machine: mount it")


@pytest.mark.parametrize("parse", [parsed_by_argparse, parsed_by_absl])
@pytest.mark.parametrize("path", ["hf:timm/resnet50.a1_in1k", "C:/photos", "a//b", "photos/x://y"])
def test_whatever_else_has_colons_and_slashes_is_a_path(parse, path):
    parse(f"--out={path}", path)


@pytest.fixture
def hushed(monkeypatch):
    """`hush_strays`, undone after the test."""
    for module, hook in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, hook, getattr(module, hook))
    hush_strays()
    # A shell starts what it runs in the background deaf to Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Stray:
    """Raises where Python can only say so: while it is deleted."""

    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


def test_what_is_raised_where_nobody_waits_prints_nothing(hushed, capsys):
    Stray(RuntimeError("Event loop is closed"))
    thread = threading.Thread(target=ending(OSError("no space")))
    thread.start()
    thread.join()
    assert capsys.readouterr() == ("", "")


def test_an_interruption_is_never_lost(hushed):
    def run():
        Stray(KeyboardInterrupt())
        time.sleep(10)
        raise AssertionError("the interruption was lost")

    assert exit_code(run) == 130


RECIPE = """
from mlic_jax.config import apply_variant, default_config
def get_config(variant=None):
    config = default_config()
    config.data.name = "mine"
    return apply_variant(config, variant)
"""


@pytest.fixture
def asked(tmp_path):
    """What a command line asks of the configuration; `RECIPE` in it is a recipe's file."""
    (tmp_path / "recipe.py").write_text(RECIPE)

    def ask(*words):
        argv = ["", *(word.replace("RECIPE", str(tmp_path / "recipe.py")) for word in words)]
        values = flags.FlagValues()
        config = recipes.define_flag("config", "", values, argv)
        assert parse_flags(argv, values, config) == [""]
        return asked_of_config(config, values)

    return ask


def test_options_with_and_without_a_recipe(asked):
    assert asked() == (None, {})
    options = ("--config.eval.flip", "--config.eval.scales=(64, 96)", "--config.data.name", "other")
    expected = {"eval.flip": True, "eval.scales": (64, 96), "data.name": "other"}
    assert asked(*options) == (None, expected)
    assert asked("--noconfig.augment.flip") == (None, {"augment.flip": False})
    twice = ("--config.eval.scales=(64,)", "--config.eval.top_n=1")
    assert asked(*twice, "--config.eval.scales=(96,)", "--config.eval.top_n=2") == (
        None,
        {"eval.scales": (96,), "eval.top_n": 2},
    )
    for given in (("--config=RECIPE:resnet18",), ("--config", "RECIPE:resnet18")):
        recipe, set_beside = asked(*given, *options)
        assert set_beside == expected
        assert (recipe.data.name, recipe.eval.flip) == ("mine", False)  # as its file has it
        assert recipe.model.backbone == "resnet18"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--config.eval.flop=1"],
            "no option 'eval.flop', see `mlic options`; did you mean",
        ),
        (["--config=RECIPE", "--config.epoch=1"], "no option 'epoch', see `mlic options`; did you"),
        (["--config.eval.top_n=many"], "many"),
        (["--config.eval=1"], "--config.eval"),
        (["--config=nowhere.py"], "nowhere.py"),
        (["--config=nowhere.py", "--config.eval.top_n=1"], "nowhere.py"),
        (["--config=RECIPE:resnet9"], "variant 'resnet9'"),
        (["--config=mcar_scene"], "did you mean 'mcar_scenes'?"),
    ],
)
def test_what_no_configuration_can_have(asked, words, message):
    with pytest.raises(UsageError) as error:
        asked(*words)
    assert message in str(error.value) and "\n" not in str(error.value)
