"""A local run opens no network socket: it reports no usage, looks for no updates and fetches nothing unasked."""

import json
import os
import subprocess
import sys
from pathlib import Path

COMMANDS = """
import json, os, socket, sys

record, photos, out = sys.argv[1:]

def watch(event, details):
    # Decoding processes pass file descriptors through sockets of the Unix family, which lead nowhere else.
    family = details[1] if event == "socket.__new__" else details[0].family if event == "socket.connect" else None
    if event == "socket.getaddrinfo" or family not in (None, socket.AF_UNIX):
        with open(record, "a") as file:
            file.write(json.dumps([event, repr(details)]) + os.linesep)

sys.addaudithook(watch)
import tinyseed
from tinyseed import cli

networks = {"teacher": "test_resnet", "teacher_weights": "random", "student": "test_efficientnet", "image_size": 32}
steps = {"batch_size": 16, "epochs": 1, "workers": 1}
tinyseed.distill(data=photos, out=out, **networks, **steps)
tinyseed.evaluate("knn", model=out, train_data=photos, test_data=photos, workers=1)
cli.main(["teachers", out])
"""


def watched(script: str, *arguments: object) -> list[list[str]]:
    """The network events of a script, which is given the path of their record first."""
    record = Path(str(arguments[0]))
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def test_a_local_run_opens_no_network_socket(photos, tmp_path):
    assert watched(COMMANDS, tmp_path / "record", photos, tmp_path / "run") == []
    assert (tmp_path / "run" / "report.html").exists()


def test_the_watch_sees_a_socket(tmp_path):
    script = COMMANDS.partition("import tinyseed")[0].replace("record, photos, out", "record,")
    script += "\nimport socket\nsocket.socket(socket.AF_INET).close()\n"
    assert len(watched(script, tmp_path / "record")) == 1
