"""Work shared among processes: each request is answered once, and one that ends its process fails alone."""

import os
import sys
from pathlib import Path

import pytest

from toolchain.measure import worker_processes

WORKER = """#!{python}
import json, os, sys, time
answers = 0
for line in sys.stdin:
    request = json.loads(line)
    if request.get("ends"):
        sys.exit("no memory left")
    if request.get("is_not_json"):
        print("hm", flush=True)
        continue
    time.sleep(request.get("seconds", 0))
    while "until" in request and not os.path.exists(request["until"]):
        time.sleep(0.01)
    print(json.dumps({{"twice": 2 * request["number"], "by": os.getpid()}}), flush=True)
    answers += 1
with open(os.environ["ENDED"] + "/" + str(os.getpid()), "w") as file:
    file.write(str(answers))
"""


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file for each worker process that has ended; WORKER stands for the interpreter that starts them."""
    worker, folder = tmp_path / "python", tmp_path / "ended"
    worker.write_text(WORKER.format(python=sys.executable))
    worker.chmod(0o755)
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.setenv("ENDED", str(folder))
    return folder


def test_every_request_is_answered_by_a_few_processes_that_end(ended: Path) -> None:
    requests = {f"n{number}": {"number": number} for number in range(20)}
    answers = dict(worker_processes.share_work("any", requests, "a helper", 3))
    assert {name: answer["twice"] for name, answer in answers.items()} == {f"n{i}": 2 * i for i in range(20)}
    assert {str(answer["by"]) for answer in answers.values()} == {path.name for path in ended.iterdir()}
    assert len(list(ended.iterdir())) <= 3


def test_answers_are_yielded_as_they_come(ended: Path) -> None:
    go = ended.parent / "go"
    answers = worker_processes.share_work(
        "any", {"slow": {"number": 1, "until": str(go)}, "quick": {"number": 2}}, "a helper", 2
    )
    assert next(answers)[0] == "quick"
    go.touch()
    assert [name for name, _ in answers] == ["slow"]


def test_a_process_that_ends_is_replaced(ended: Path) -> None:
    requests = {"a": {"number": 1}, "b": {"ends": True}, "c": {"is_not_json": True}, "d": {"number": 2}}
    answers = dict(worker_processes.share_work("any", requests, "a helper", 1))
    assert (answers["a"]["twice"], answers["d"]["twice"]) == (2, 4)
    assert isinstance(answers["b"], worker_processes.WorkerEnded)
    assert str(answers["b"]) == "a helper failed: no memory left"
    assert str(answers["c"]) == "a helper answered 'hm', which is not a result in JSON"
    assert answers["a"]["by"] != answers["d"]["by"]


def test_a_caller_that_stops_early_waits_only_for_requests_in_progress(ended: Path) -> None:
    answers = worker_processes.share_work(
        "any", {f"n{i}": {"number": i, "seconds": 0.2} for i in range(100)}, "a helper", 2
    )
    next(answers)
    answers.close()
    assert sum(int(path.read_text()) for path in ended.iterdir()) < 20
    for path in ended.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
    assert 1 <= len(list(ended.iterdir())) <= 2


def test_no_requests_give_no_answers(ended: Path) -> None:
    assert not list(worker_processes.share_work("any", {}, "a helper"))
