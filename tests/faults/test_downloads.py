"""Downloads that fail, stall, lie or are something else: one line, nothing left in the cache, no secret shown."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
import time

import fsspec
import pytest
import torch

from tinyseed.checkpoints import remote
from tinyseed.checkpoints.load import describe_model, load_teacher
from tinyseed.checkpoints.remote import local_file
from tinyseed.cli import main
from tinyseed.errors import InputError, RunError
from tinyseed.files import json_text
from tinyseed.models.backbones import build_backbone
from tinyseed.text import one_line, public

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "a.pth"
    torch.save(build_backbone("test_resnet", seed=0).network.state_dict(), path)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files"


class Server:
    """A web server whose answers are functions of the request's handler, by path."""

    def __init__(self) -> None:
        self.answers, self.asked = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.asked.append((self.path, self.headers.get("Authorization")))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer.answers[self.path.partition("?")[0]](self)

        self.running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.running.daemon_threads = True
        self.address = f"127.0.0.1:{self.running.server_port}"
        threading.Thread(target=self.running.serve_forever, daemon=True).start()

    def url(self, path, answer) -> str:
        self.answers[path] = answer
        return f"http://{self.address}{path}"


@pytest.fixture
def server():
    made = Server()
    yield made
    made.running.shutdown()
    made.running.server_close()


def reply(body=b"", status=200, *, length=None, then=lambda handler: None, **headers):
    """An answer with this body; `length` is what the header states, "" for none."""

    def answer(handler):
        handler.send_response(status)
        if length != "":
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        then(handler)

    return answer


def refused(url, cache) -> str:
    with pytest.raises(InputError) as caught:
        local_file(url)
    assert not cache.exists() or list(cache.iterdir()) == []
    message = str(caught.value)
    assert message.isprintable()
    return message


def md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 500, 503])
def test_a_refusal_of_the_server_is_one_line(status, server, cache):
    message = refused(server.url("/a.pth", reply(b"<html>no</html>", status)), cache)
    assert ("no such file there" if status in (404, 410) else str(status)) in message


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<!doctype html><title>Sign in</title>" + b" " * 9000, "is a web page (Sign in)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"", "is empty"),
        (b'{"error": "quota"}', "is a JSON file"),
        (b'{"metadata": {}, "weight_map": {"a": "b.safetensors"}}', "lists the files of a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_does_not_stay_in_the_cache(body, reason, server, cache):
    assert reason in refused(server.url("/a.pth", reply(body)), cache)


def test_a_redirect_to_a_sign_in_page_and_redirects_in_circles(server, cache):
    server.url("/login", reply(b"<html>Please sign in</html>"))
    assert "web page" in refused(server.url("/a.pth", reply(status=302, Location="/login?next=a")), cache)
    assert "circles" in refused(server.url("/b.pth", reply(status=302, Location="/b.pth")), cache)


def test_an_interrupted_download_leaves_nothing_and_can_be_repeated(server, cache, content):
    half = reply(content[: len(content) // 2], length=len(content))
    assert "incomplete" in refused(server.url("/a.pth", half), cache)
    cut = reply(content[: len(content) // 2], length="")  # the end of its zip archive is missing
    assert "incomplete" in refused(server.url("/a.pth", cut), cache)
    assert local_file(server.url("/a.pth", reply(content))).read_bytes() == content


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_MD5": md5(b"other")},
        {"x_goog_hash": f"crc32c=AAAAAA==, md5={md5(b'other')}"},
        {"Server": "AmazonS3", "x_amz_id_2": "a", "ETag": f'"{hashlib.md5(b"other").hexdigest()}"'},
        {"x_amz_checksum_sha256": base64.b64encode(hashlib.sha256(b"other").digest()).decode()},
        {"Repr_Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(b'other').digest()).decode()}:"},
    ],
)
def test_a_checksum_that_the_server_states_is_compared(headers, server, cache, content):
    assert "was damaged or replaced" in refused(server.url("/a.pth", reply(content, **headers)), cache)


def test_right_checksums_and_tags_of_other_kinds_are_accepted(server, cache, content):
    right = {"Content_MD5": md5(content), "x_amz_id_2": "a", "ETag": f'"{hashlib.md5(content).hexdigest()}"'}
    for number, headers in enumerate(
        (
            right,
            {"ETag": '"0123456789abcdef0123456789abcdef"'},
            {"x_amz_id_2": "a", "ETag": '"abc-3"'},
            {"Digest": "%%%"},
        )
    ):
        assert local_file(server.url(f"/{number}.pth", reply(content, **headers))).is_file()


def test_the_checksum_in_the_url_or_the_name_is_compared(server, cache, content):
    right = hashlib.sha256(content).hexdigest()
    named = "ab" + "0" * 6 if not right.startswith("ab") else "cd" + "0" * 6
    assert "damaged" in refused(server.url(f"/resnet18-{named}.pth", reply(content)), cache)
    assert "damaged" in refused(server.url("/a.pth", reply(content)) + f"#sha256={'0' * 64}", cache)
    assert "64 hexadecimal digits" in refused(server.url("/a.pth", reply(content)) + "#sha256=12", cache)
    # What the user states comes before the name; a date is no checksum.
    assert local_file(server.url(f"/resnet18-{named}.pth", reply(content)) + f"#sha256={right}").is_file()
    assert local_file(server.url("/model-20240131.pth", reply(content))).is_file()
    # And what is in the cache is compared, too.
    with pytest.raises(InputError, match="in the cache"):
        local_file(server.url("/model-20240131.pth", reply(content)) + f"#sha256={'0' * 64}")


def test_a_body_that_never_ends_is_left(server, cache, monkeypatch):
    def endless(handler):
        while True:
            handler.wfile.write(bytes(2**20))

    monkeypatch.setattr(remote, "_LARGEST", 2**24)
    message = refused(
        server.url("/a.pth", reply(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", length="", then=endless)),
        cache,
    )
    assert "which no checkpoint here needs" in message
    assert "GiB" in refused(server.url("/b.pth", reply(b"PK\3\4", length=2**60)), cache)


def test_servers_that_send_next_to_nothing_are_left(server, cache, monkeypatch):
    def drip(handler):
        for _ in range(100):
            handler.wfile.write(b"\0")
            handler.wfile.flush()
            time.sleep(0.05)

    def slow_headers(handler):
        handler.send_response_only(200)
        handler.flush_headers()
        for _ in range(100):
            handler.wfile.write(b"X-A: b\r\n")
            handler.wfile.flush()
            time.sleep(0.05)

    monkeypatch.setattr(remote, "_PATIENCE", 0.3)
    began = time.monotonic()
    assert "too slowly" in refused(server.url("/a.pth", reply(b"PK\3\4", length=10**6, then=drip)), cache)
    silent = reply(b"PK\3\4", length=10**6, then=lambda handler: time.sleep(1))
    assert "timed out" in refused(server.url("/b.pth", silent), cache)
    assert "no answer" in refused(server.url("/c.pth", slow_headers), cache)
    assert time.monotonic() - began < 4


def test_compression_that_was_not_asked_for(server, cache, content):
    packed = gzip.compress(content)
    assert local_file(server.url("/a.pth", reply(packed, Content_Encoding="gzip"))).read_bytes() == content


def test_wrong_compression_is_one_line(server, tmp_path, monkeypatch, content):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "other"))
    empty = tmp_path / "other" / "files"
    assert "cannot be fetched" in refused(
        server.url("/b.pth", reply(content, Content_Encoding="gzip")), empty
    )
    cut = gzip.compress(content)[:-50]
    assert "incomplete" in refused(server.url("/c.pth", reply(cut, Content_Encoding="gzip")), empty)
    assert "was not asked for (br)" in refused(
        server.url("/d.pth", reply(content, Content_Encoding="br")), empty
    )


def test_what_a_killed_download_left_is_swept(server, cache, content):
    cache.mkdir(parents=True)
    old, new = cache / ".a.pth.x.unfinished", cache / ".b.pth.y.unfinished"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    local_file(server.url("/a.pth", reply(content)))
    assert not old.exists()
    assert new.exists()  # another process may be writing to it


def test_two_downloads_of_the_same_file_at_once(server, cache, content):
    def slow(handler):
        time.sleep(0.3)
        reply(content)(handler)

    url, found = server.url("/a.pth", slow), []
    threads = [threading.Thread(target=lambda: found.append(local_file(url).read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [content] * 3
    assert len(list(cache.iterdir())) == 1


def test_a_full_disk_is_not_the_networks_fault(server, cache, content, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote, "_receive", full)
    with pytest.raises(RunError, match="No space left on device"):
        local_file(server.url("/a.pth", reply(content)))
    assert list(cache.iterdir()) == []


def test_other_file_systems_are_checked_alike(cache, content):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/faults/page.pth", b"<html>no</html>")
    memory.pipe_file("/faults/cut.pth", content[:-200])
    assert "web page" in refused("memory://faults/page.pth", cache)
    assert "incomplete" in refused("memory://faults/cut.pth", cache)


# --- secrets

SECRETS = ("hunter2", "S3CR3T", "T0KEN", "5F5F5F")


def secret_url(address, path="/a.pth") -> str:
    return f"http://me:hunter2@{address}{path}?X-Amz-Signature=S3CR3T&token=T0KEN&id=7#5F5F5F"


def test_the_password_is_sent_and_shown_nowhere(server, cache, content, capsys, tmp_path):
    server.url("/a.pth", reply(content))
    server.url("/page.pth", reply(b"<html>no</html>"))
    url = secret_url(server.address)
    teacher = load_teacher(url, arch="test_resnet", image_size=32)
    assert server.asked[0][1] == "Basic " + base64.b64encode(b"me:hunter2").decode()
    described = describe_model(url, arch="test_resnet")
    shown = [teacher.spec, json.dumps(described.as_json()), *map(str, cache.iterdir())]
    for bad in (
        secret_url(server.address, "/page.pth"),
        secret_url("127.0.0.1:9", "/gone.pth"),
        "https://me:hunter2@[/a?token=T0KEN",
    ):
        with pytest.raises(InputError) as caught:
            load_teacher(bad)
        shown += [str(caught.value), repr(caught.value), repr(pickle.dumps(caught.value.args))]
        with pytest.raises(SystemExit):
            main(["teachers", bad])
    with pytest.raises(SystemExit):
        main(["teachers", url, "--teacher-arch", "test_resnet"])
    shown += capsys.readouterr()
    assert [secret for secret in SECRETS for text in shown if secret in text] == []
    assert "id=7" in teacher.spec


def test_the_next_signature_finds_the_same_file_and_another_id_another(server, cache, content):
    server.url("/a.pth", reply(content))
    for query in ("X-Amz-Signature=1&id=7", "X-Amz-Signature=2&id=7", "X-Amz-Signature=2&id=8"):
        local_file(f"http://{server.address}/a.pth?{query}")
    assert len(server.asked) == 2


@pytest.mark.slow
def test_a_run_from_a_secret_url_keeps_no_secret_and_resumes(server, cache, content, photos, tmp_path):
    server.url("/a.pth", reply(content))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tinyseed.cli", "distill", "--data", str(photos), "--out", str(out)]
    command += [
        "--teacher",
        secret_url(server.address),
        "--teacher-arch",
        "test_resnet",
        "--student",
        "test_resnet",
    ]
    command += ["--epochs", "1", "--batch-size", "16", "--image-size", "32", "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (out / "summary.json").unlink()
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    texts = [path.read_bytes().decode("latin-1") for path in out.rglob("*") if path.is_file()]
    for text in (*texts, done.stdout, done.stderr, again.stdout, again.stderr):
        assert not any(secret in text for secret in SECRETS)
    assert json.loads((out / "config.json").read_text())["teacher"].startswith(
        f"http://{server.address}/a.pth?"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://u:p@h/a.pth", "https://h/a.pth"),
        ("S3://key:pa ss@b/a.pth", "s3://b/a.pth"),
        ("https://h/a?token=x&id=1", "https://h/a?token=…&id=1"),
        ("https://h/a?sig", "https://h/a?…"),
        ("https://h/a#frag", "https://h/a#…"),
        ("https://h/a?dl=1", "https://h/a?dl=1"),
        ("https://u:p/q@h/a", "https://…"),
        ("https://h/@scope/a.pth", "https://h/@scope/a.pth"),
        ("runs/a@b?c", "runs/a@b?c"),
        ("--teacher=https://u:p@h/a?k=v", "--teacher=https://h/a?k=…"),
    ],
)
def test_urls_without_their_secrets(given, expected):
    assert public(given) == expected
    assert json.loads(json_text([given])) == [expected]
    assert public(expected) == expected
    assert one_line(f"cannot reach {expected}: try again") == f"cannot reach {expected}: try again"
