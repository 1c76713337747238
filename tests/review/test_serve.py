"""The page of a review: own data, a real process and a real browser, from answers to labels."""

import csv
import http.client
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

from mlic_jax import recipes
from mlic_jax.config import default_config
from mlic_jax.data import sources
from mlic_jax.data.corrections import Answer, append, now, read
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import open_split
from mlic_jax.data.scenes import CLASS_NAMES, render
from mlic_jax.errors import Failure, UsageError
from mlic_jax.predict.serve import listen
from mlic_jax.prepare import own_data
from mlic_jax.review.look import Seen
from mlic_jax.review.questions import Questions
from mlic_jax.review.serve import Review, is_named, review_run
from mlic_jax.review.serve import Server as ReviewServer
from mlic_jax.runtime.checkpoint import save_weights

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("blue", "green", "red")
UNLABELLED = (5, 6)


class Own:
    """A prepared set of own data with two photos without labels, and a run that did no step."""

    def __init__(self, folder, fresh_run):
        self.folder, data = folder, folder / "data"
        (data / "photos").mkdir(parents=True)
        with (data / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", *COLOURS, "split"])
            for i in range(30):
                scene = render(7, "own", i)
                (data / "photos" / f"{i}.jpg").write_bytes(scene.image)
                there = {CLASS_NAMES[c].split()[0] for c in np.flatnonzero(scene.labels > 0)}
                known = ["?" if i in UNLABELLED else int(c in there) for c in COLOURS]
                writer.writerow([f"{i}.jpg", *known, "val" if i % 3 == 0 else "train"])
        self.prepare()
        self.recipe, self.file = folder / "mine" / "mine.py", folder / "mine" / "corrections.csv"
        self.config = recipes.load(str(self.recipe))
        self.run = folder / "run"
        self.run.mkdir()
        variables, metadata = fresh_run(self.config, self.run)
        save_weights(self.run, variables, metadata)

    def prepare(self):
        """Runs the command; gives its data card, as JSON and as a page."""
        arguments = {
            **{"images": self.folder / "data", "name": "mine", "output": self.folder / "mine"},
            **{"prepared-dir": self.folder / "prepared", "word-vectors": "none"},
            "image-size": 64,
        }
        words = [f"--{name}={value}" for name, value in arguments.items()]
        assert own_data.main(words) == 0
        card = self.folder / "mine" / "data_card"
        return json.loads(card.with_suffix(".json").read_text()), card.with_suffix(".html")


@pytest.fixture(scope="module")
def own(tmp_path_factory, fresh_run):
    return Own(tmp_path_factory.mktemp("own"), fresh_run)


class Server:
    """The command in a process of its own, on a free port."""

    def __init__(self, run, log):
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        flags = ("--mode=review", f"--workdir={run}", "--port=0", "--who=anna")
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlic_jax.main", *flags],
                env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": path},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        for _ in range(1200):
            if found := re.search(r"the page is (http://127\.0\.0\.1:\d+/) until", log.read_text()):
                break
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.1)
        self.url = found[1]
        self.host = urllib.parse.urlsplit(self.url).netloc

    def ask(self, path, content=None, method="POST", **headers):
        """(status, text) of a request, with the headers of the page but for those given."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        headers = {"Content-Type": "application/json", "Host": self.host} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        body = None if method == "GET" else json.dumps(content or {})
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found


@pytest.fixture(scope="module")
def server(own, tmp_path_factory):
    server = Server(own.run, tmp_path_factory.mktemp("server") / "log.txt")
    yield server
    server.process.kill()
    server.process.wait()


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        *[(f"127.0.0.1:{7860}", True), ("localhost:80", True), ("[::1]:7860", True)],
        *[("192.168.1.5", True), ("box:7860", True), ("BOX", True)],
        *[("evil.example:7860", False), ("127.0.0.1.evil.example", False), ("", False)],
        *[("[::1", False), ("localhost.evil.example", False)],
    ],
)
def test_names_of_the_machine(host, is_ours):
    assert is_named(host, {"box", "localhost"}) == is_ours


def test_other_sites_get_nothing_and_give_nothing(server, own):
    answers = {"answers": [[0, 0, "present"]], "who": "eve"}
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Content_Type": "text/plain"},  # which a browser sends anywhere without asking
        {"Content_Type": "application/x-www-form-urlencoded"},
    ):
        assert server.ask("/answer", answers, **headers)[0] == 403
    assert server.ask("/answer", answers, "GET")[0] == 404
    assert server.ask("/other", answers)[0] == 403
    for path in ("/", "/photo/0"):
        assert server.ask(path, method="GET", Host="evil.example")[0] == 403
        assert server.ask(path, method="GET")[0] == 200
    assert server.ask("/photo/../main.py", method="GET")[0] == 404
    assert not own.file.exists()


def test_what_is_malformed_is_one_line(server, own):
    for path, content in (
        ("/answer", {"answers": [[0, 0, "perhaps"]], "who": "anna"}),
        ("/answer", {"answers": [[999, 0, "present"]], "who": "anna"}),
        ("/answer", {"answers": 3, "who": "anna"}),
        ("/answer", {"answers": [[0, 0, "present"]], "who": " "}),
        ("/answer", {"answers": [[0, 0, "present"]], "who": 200_000 * "a"}),
        ("/answer", {"answers": [[0, 0, "present"]], "who": None}),
        ("/answer", {"answers": [[math.inf, 0, "present"]], "who": "anna"}),
        ("/answer", {"answers": [[0.5, 0, "present"]], "who": "anna"}),
        ("/answer", {"answers": [[0, 0, "undo"]], "who": "anna"}),
        ("/rest", {"row": 999, "who": "anna"}),
        ("/rest", {"row": -1, "who": "anna"}),
        ("/undo", {"who": None}),
        ("/next", {"list": "doubtful", "passed": [[math.inf, 0]]}),
        ("/next", {"list": "\ud800", "passed": []}),
        ("/next", {"list": "other", "passed": []}),
        ("/next", []),
    ):
        status, said = server.ask(path, content)
        assert status == 400 and said and b"\n" not in said, (path, content)
    assert server.ask("/photo/999", method="GET")[0] == 400
    assert server.ask(f"/photo/{5000 * '9'}", method="GET")[0] == 404
    assert not own.file.exists()


def test_a_name_that_was_typed_gives_way_to_a_new_one_of_the_program(
    chromium, make_config, tmp_path
):
    def opened(who):
        review = Review(questions, lambda row, photo, name: Seen(0.5, None), who)
        server.review = review
        chromium.open(url)
        chromium.wait_for(f"{QUESTION} && document.body.ariaBusy !== 'true'")
        return chromium.value("who.value")

    splits = list(sources.open_splits(DataOptions.of(make_config().data)).values())
    features = np.concatenate([split.labels() for split in splits]).astype(float)
    questions = Questions(splits, features, tmp_path / "corrections.csv")
    with (
        listen("127.0.0.1", 0) as listener,
        ReviewServer(listener, Review(questions, None, "")) as server,
    ):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert opened("anna") == "anna"
            chromium.value("who.value = 'bert'; who.dispatchEvent(new Event('change'))")
            assert opened("anna") == "bert"
            assert opened("ben") == "ben"
        finally:
            server.shutdown()
            thread.join()


def place(row):
    return f"{row.split}/{row.photo}/{row.class_name}"


QUESTION = "document.body?.dataset.question"


def test_with_a_keyboard(chromium, server, own):
    def press(key):
        """Gives the question that it was pressed at, once another is shown."""
        before = chromium.value(QUESTION)
        for kind in ("keyDown", "keyUp"):
            chromium("Input.dispatchKeyEvent", type=kind, key=key)
        chromium.wait_for(
            f"{QUESTION} !== {json.dumps(before)} && document.body.ariaBusy !== 'true'"
        )
        return before

    chromium.open(server.url)
    chromium.wait_for(f"{QUESTION} && {QUESTION} !== 'none'")
    chromium.wait_for("document.querySelector('#photo').naturalWidth > 0")
    assert chromium.value("document.querySelector('#who').value") == "anna"
    first = press("a")
    (row,) = read(own.file)
    assert (place(row), row.answer, row.who) == (first, "absent", "anna")
    press("z")
    assert chromium.value(QUESTION) == first
    assert [row.answer for row in read(own.file)] == ["absent", "undo"]
    asked = [press(key) for key in "pusa"]
    assert asked[0] == first and len(set(asked)) == 4
    given = [(place(row), row.answer) for row in read(own.file)[2:]]
    assert given == [(asked[0], "present"), (asked[1], "unknown"), (asked[3], "absent")]

    # By touch; the buttons are large, and all is there on a telephone.
    screen = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    chromium("Emulation.setDeviceMetricsOverride", **screen)
    assert chromium.value("document.documentElement.scrollWidth") <= 400
    heights = (
        "[...document.querySelectorAll('footer button:not([hidden])')].map(b => b.offsetHeight)"
    )
    assert min(chromium.value(heights)) >= 48
    before = chromium.value(QUESTION)
    chromium.value("document.querySelector('[data-answer=present]').click()")
    chromium.wait_for(f"{QUESTION} !== {json.dumps(before)} && document.body.ariaBusy !== 'true'")
    assert (place(read(own.file)[-1]), read(own.file)[-1].answer) == (before, "present")

    # What is typed into the name is no answer.
    count = len(read(own.file))
    chromium.value("document.querySelector('#who').focus()")
    chromium("Input.dispatchKeyEvent", type="keyDown", key="p", text="p")
    assert chromium.value("document.querySelector('#who').value") == "annap"
    chromium.value("who.value = 'bert'; who.dispatchEvent(new Event('change')); who.blur()")

    chromium.value("document.querySelector('#unlabelled').click()")
    chromium.wait_for(f"/\\/[{UNLABELLED[0]}{UNLABELLED[1]}].jpg\\//.test({QUESTION})")
    photo = press("p").split("/")[1]
    press("r")
    rows = read(own.file)[count:]
    assert {row.photo for row in rows} == {photo} and {row.who for row in rows} == {"bert"}
    assert [row.answer for row in rows] == ["present", "absent", "absent"]
    assert photo not in chromium.value(QUESTION)

    chromium.value("document.querySelector('#retrain').click()")
    chromium.wait_for("document.querySelector('#note').innerText.includes('fitted in')")
    said = [event for event in chromium.events if event["method"] == "Log.entryAdded"]
    assert said == []


def test_a_small_photo_grows_and_what_is_said_is_explained(chromium, server):
    screen = {"width": 1100, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.open(server.url)
    chromium("Emulation.setDeviceMetricsOverride", **screen)
    chromium.wait_for("document.querySelector('#photo')?.naturalWidth > 0")
    chromium.wait_for("photo.complete && document.body.ariaBusy !== 'true'")
    width, height, wide, high, view = chromium.value(
        "[photo.clientWidth, photo.clientHeight, photo.naturalWidth, photo.naturalHeight,"
        " document.querySelector('#view').clientWidth]"
    )
    room = (1100 - 48) * 2 / 3, 900 - 230
    growth = min(3, room[0] / wide, room[1] / high)
    assert growth > 1  # or there is nothing to see
    assert abs(width - growth * wide) <= 1 and abs(height - growth * high) <= 1
    assert view == width  # of which the box has its share
    shown = "document.querySelector('section').innerText"
    assert "The probe judges by" in chromium.value(shown)
    box_is_shown = chromium.value("!document.querySelector('#box').hidden")
    assert ("The box is where" in chromium.value(shown)) == box_is_shown


def ask_next(server, name="doubtful"):
    status, answer = server.ask("/next", {"list": name, "passed": []})
    assert status == 200, answer
    return json.loads(answer)["question"]


def test_a_question_says_what_is_known(server, own):
    question = ask_next(server)
    assert question["kind"] in ("missing", "wrong")
    assert question["said"] == {"missing": "absent", "wrong": "present"}[question["kind"]]
    assert 0 <= question["probability"] <= 1 and 0 <= question["model"] <= 1
    if question["box"]:
        left, top, width, height = question["box"]
        assert 0 <= left < left + width <= 1 and 0 <= top < top + height <= 1
    status, photo = server.ask(question["image"], method="GET")
    assert status == 200 and photo.startswith(b"\xff\xd8")


def test_two_reviewers_disagree_and_agree(server, own):
    question = ask_next(server)
    answer = [question["row"], question["class_index"]]
    for who, word in (("anna", "present"), ("bert", "absent")):
        content = {"answers": [[*answer, word]], "who": who}
        assert server.ask("/answer", content) == (200, b'{"kept": 1}')
    shown = ask_next(server)
    assert (shown["row"], shown["class_index"], shown["kind"]) == (*answer, "disagreement")
    assert shown["people"] == [
        {"who": "anna", "answer": "present"},
        {"who": "bert", "answer": "absent"},
    ]
    assert json.loads(server.ask("/undo", {"who": "bert"})[1])["question"]["kind"] == "again"
    assert ask_next(server)["kind"] != "disagreement"


def test_killed_it_has_lost_no_answer_and_all_hold_in_training(tmp_path, fresh_run):
    own = Own(tmp_path, fresh_run)
    server = Server(own.run, tmp_path / "log.txt")
    before = [
        split.labels() for split in sources.open_prepared(DataOptions.of(own.config.data)).values()
    ]
    said = [(0, 0, "anna", "present"), (0, 0, "bert", "absent"), (1, 1, "anna", "present")]
    for row, c, who, word in [*said, *[(row, 2, "carl", "unknown") for row in range(3)]]:
        content = {"answers": [[row, c, word]], "who": who}
        assert server.ask("/answer", content)[0] == 200
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    answers = read(own.file)
    assert [answer.answer for answer in answers[-3:]] == 3 * ["unknown"]
    append(own.file, [Answer("gone.jpg", "train", "blue", "present", "anna", now())])

    splits = sources.open_to_train(DataOptions.of(own.config.data))
    changed = sum(
        np.count_nonzero(split.labels() != old)
        for split, old in zip(splits.values(), before, strict=True)
    )
    card, page = own.prepare()
    corrected = card["corrections"]
    rows = corrected["changed"] + [row for row in corrected["conflicts"] if row["was"] != row["is"]]
    assert len(corrected["conflicts"]) == 1 and len(corrected["changed"]) >= 2
    assert changed == sum(1 + (row["split"] == "val") for row in rows)  # val is test too
    assert "carl" in corrected["people"]
    assert [row["photo"] for row in corrected["gone"]] == ["gone.jpg"]
    assert corrected["said"] in page.read_text() and "gone.jpg" in page.read_text()
    labels = {name: split.labels() for name, split in splits.items()}
    assert card["splits"]["train"]["positives"] == (labels["train"] > 0).sum(axis=0).tolist()

    own.file.unlink()  # and with it all of them
    after = sources.open_splits(DataOptions.of(own.config.data))
    for split, old in zip(after.values(), before, strict=True):
        np.testing.assert_array_equal(split.labels(), old)
    assert own.prepare()[0]["corrections"]["said"] == ""


def test_a_photo_that_cannot_be_read_is_a_line_and_the_next_is_shown(make_config, tmp_path):
    config = make_config()
    splits = sources.open_splits(DataOptions.of(config.data))
    copied = shutil.copytree(splits["val"].directory, tmp_path / "set")
    train, val = (open_split(copied, name) for name in ("train", "val"))
    for shard in copied.glob("*val*array_record*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    labels = np.concatenate([train.labels(), val.labels()])
    for photo in (0, len(train)):  # one is missing of each split, which the features tell
        labels[photo, 0] = -1
    features = np.concatenate([train.labels(), val.labels()]).astype(float)
    features[[0, len(train)], 0] = 1
    parts = [train.with_labels(labels[: len(train)]), val.with_labels(labels[len(train) :])]
    questions = Questions(parts, features, tmp_path / "corrections.csv")
    review = Review(questions, lambda row, photo, name: Seen(0.5, None), "anna")
    passed, notes = [], []
    while (answer := review.next({"list": "doubtful", "passed": passed}))["question"]:
        notes += answer["notes"]
        passed.append([answer["question"]["row"], answer["question"]["class_index"]])
        assert answer["question"]["split"] == "train"
    notes += answer["notes"]
    assert passed and notes and len(set(notes)) == len(notes)
    assert all("split val" in note and "is left out" in note for note in notes)


def test_a_file_of_no_use_is_told_before_the_model_is_loaded(tmp_path):
    config = default_config()
    config.data.corrections = str(tmp_path / "notes.csv")
    Path(config.data.corrections).write_text("my notes\n")
    with pytest.raises(Failure, match="is no file of corrections"):
        review_run(config, tmp_path / "no run", "anna")


def test_a_recipe_without_a_file_of_corrections_is_told_how(tmp_path):
    with pytest.raises(UsageError, match=r"--config\.data\.corrections=own/NAME/corrections\.csv"):
        review_run(default_config(), tmp_path, "anna")
