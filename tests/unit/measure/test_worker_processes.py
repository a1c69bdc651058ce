"""Work shared among processes: each question is answered once, and one that ends a process takes no other with it."""

import os
import sys
from pathlib import Path

import pytest

from toolchain.measure import worker_processes

ROOM = """#!{python}
import json, os, sys, time
answers = 0
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("ends"):
        sys.exit("no memory left")
    if asked.get("mumbles"):
        print("hm", flush=True)
        continue
    time.sleep(asked.get("takes", 0))
    while "until" in asked and not os.path.exists(asked["until"]):
        time.sleep(0.01)
    print(json.dumps({{"twice": 2 * asked["number"], "by": os.getpid()}}), flush=True)
    answers += 1
with open(os.environ["ENDED"] + "/" + str(os.getpid()), "w") as file:
    file.write(str(answers))
"""


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file for each process that came to its end; the processes are of a room made up here."""
    room, folder = tmp_path / "python", tmp_path / "ended"
    room.write_text(ROOM.format(python=sys.executable))
    room.chmod(0o755)
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(room))
    monkeypatch.setenv("ENDED", str(folder))
    return folder


def test_every_question_is_answered_by_few_processes_that_end(ended: Path) -> None:
    questions = {f"n{number}": {"number": number} for number in range(20)}
    found = dict(worker_processes.share_work("any", questions, "a helper", 3))
    assert {name: answer["twice"] for name, answer in found.items()} == {f"n{i}": 2 * i for i in range(20)}
    assert {str(answer["by"]) for answer in found.values()} == {path.name for path in ended.iterdir()}
    assert len(list(ended.iterdir())) <= 3


def test_what_comes_first_is_told_first(ended: Path) -> None:
    told = ended.parent / "told"
    answers = worker_processes.share_work(
        "any", {"slow": {"number": 1, "until": str(told)}, "quick": {"number": 2}}, "a helper", 2
    )
    assert next(answers)[0] == "quick"
    told.touch()
    assert [name for name, _ in answers] == ["slow"]


def test_a_process_that_ends_is_replaced(ended: Path) -> None:
    questions = {"a": {"number": 1}, "b": {"ends": True}, "c": {"mumbles": True}, "d": {"number": 2}}
    found = dict(worker_processes.share_work("any", questions, "a helper", 1))
    assert (found["a"]["twice"], found["d"]["twice"]) == (2, 4)
    assert isinstance(found["b"], worker_processes.WorkerEnded)
    assert str(found["b"]) == "a helper failed: no memory left"
    assert str(found["c"]) == "a helper answered 'hm', which is no result"
    assert found["a"]["by"] != found["d"]["by"]


def test_who_stops_listening_waits_for_nobody_but_those_at_work(ended: Path) -> None:
    answers = worker_processes.share_work(
        "any", {f"n{i}": {"number": i, "takes": 0.2} for i in range(100)}, "a helper", 2
    )
    next(answers)
    answers.close()
    assert sum(int(path.read_text()) for path in ended.iterdir()) < 20
    for path in ended.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
    assert 1 <= len(list(ended.iterdir())) <= 2


def test_nothing_to_ask(ended: Path) -> None:
    assert not list(worker_processes.share_work("any", {}, "a helper"))
