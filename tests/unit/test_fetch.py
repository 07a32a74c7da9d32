"""Downloads against a server on this machine that speaks the Hub's few endpoints and can be told to misbehave."""

import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from exporter import fetch as module
from exporter.fetch import fetch
from exporter.progress import silent
from runtimes.errors import BadCheckpoint, Missing, WrongCall

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "BlinkDL/rwkv-7-world"
WEIGHTS = bytes(range(256)) * 400
LARGE = 1000  # files above this are in large-file storage, as on the Hub


@dataclass
class Hub:
    """Repositories, and what goes wrong: one entry of `breaks` is used up by each download that it breaks."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    breaks: list[str] = field(default_factory=list)
    served: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def listing(self, repo: str) -> dict:
        siblings = []
        for name, content in self.repositories[repo].items():
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
            item = {"rfilename": name, "size": len(content), "blobId": blob}
            if len(content) > LARGE:
                item["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
            siblings.append(item)
        return {"id": repo, "sha": COMMIT, "siblings": siblings}


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            path = self.path.partition("?")[0]
            hub.requests.append((path, self.headers.get("Range")))
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
            file = re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path)
            repo = (api or file)[1]
            if repo in hub.refused:
                status, code = hub.refused[repo]
                self.reply(status, b"", X_Error_Code=code)
            elif repo not in hub.repositories:
                self.reply(401, b"", X_Error_Code="RepoNotFound")
            elif api and api[2] not in (None, "main"):
                self.reply(404, b"", X_Error_Code="RevisionNotFound")
            elif api:
                self.reply(200, json.dumps(hub.listing(repo)).encode(), Content_Type="application/json")
            else:
                self.send_file(hub.served.get(file[2], hub.repositories[repo][file[2]]))

        def send_file(self, content: bytes) -> None:
            start = int(re.search(r"\d+", self.headers.get("Range", "0"))[0])
            body = content[start:]
            if not hub.breaks:
                extra = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
                self.reply(206 if start else 200, body, **extra)
                return
            how = hub.breaks.pop(0)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if how != "silent":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
            if how == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

    return Handler


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub({REPO: {"RWKV-7.pth": WEIGHTS, "README.md": b"# RWKV", "old/RWKV-7-old.pth": WEIGHTS[::-1]}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    yield hub
    server.shutdown()
    server.server_close()


def ranges(hub: Hub) -> list[str | None]:
    return [wanted for path, wanted in hub.requests if "/resolve/" in path]


def test_a_file_arrives_whole_under_its_name(hub, tmp_path):
    path = fetch(f"{REPO}/RWKV-7.pth", into=tmp_path / "models", progress=silent)

    assert path == tmp_path / "models" / "RWKV-7.pth"
    assert path.read_bytes() == WEIGHTS
    assert list(path.parent.iterdir()) == [path]


def test_the_default_place_is_the_current_folder(hub, tmp_path):
    assert fetch(f"{REPO}/old/RWKV-7-old.pth", progress=silent).resolve() == tmp_path / "RWKV-7-old.pth"


def test_an_intact_file_is_not_downloaded_again(hub, tmp_path):
    fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent)
    fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent)

    assert len(ranges(hub)) == 1


def test_an_altered_file_is_downloaded_again(hub, tmp_path):
    path = fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent)
    path.write_bytes(WEIGHTS[:-1] + b"\0")

    assert fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent).read_bytes() == WEIGHTS


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_broken_connection_is_taken_up_where_it_broke(hub, tmp_path, how):
    hub.breaks = [how]

    path = fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent)

    assert path.read_bytes() == WEIGHTS
    first, second = ranges(hub)
    assert first is None and 0 < int(re.fullmatch(r"bytes=(\d+)-", second)[1]) <= len(WEIGHTS) // 2


def test_the_next_command_continues_what_an_earlier_one_left(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    hub.breaks = ["reset", "reset", *["silent"] * 20]
    with pytest.raises(Missing, match=r"the connection broke off after \d+ of 102400 bytes of RWKV-7\.pth") as caught:
        fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent)
    assert "continues there" in caught.value.hint
    (part,) = tmp_path.glob(".RWKV-7.pth.*.part")
    kept = part.stat().st_size
    assert kept > 0 and not (tmp_path / "RWKV-7.pth").exists()

    hub.breaks, hub.requests = [], []
    path = fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent)

    assert path.read_bytes() == WEIGHTS
    assert ranges(hub) == [f"bytes={kept}-"]
    assert not part.exists()


def test_progress_adds_up_over_breaks(hub, tmp_path):
    hub.breaks = ["reset", "close"]
    counted: dict[str, int] = {}

    @contextmanager
    def counting(text, total=None):
        counted[text] = 0

        def advance(amount):
            counted[text] += amount

        yield advance
        assert counted[text] == total

    fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=counting)

    assert counted == {"downloading RWKV-7.pth": len(WEIGHTS), "checking RWKV-7.pth": len(WEIGHTS)}


@pytest.mark.parametrize("name", ["RWKV-7.pth", "README.md"])
def test_a_corrupted_body_is_noticed_and_removed(hub, tmp_path, name):
    content = hub.repositories[REPO][name]
    hub.served[name] = content[:-1] + bytes([content[-1] ^ 1])

    with pytest.raises(BadCheckpoint, match=f"{re.escape(name)} arrived damaged"):
        fetch(f"{REPO}/{name}", into=tmp_path, progress=silent)
    assert list(tmp_path.iterdir()) == []


def test_a_body_of_another_size_is_noticed(hub, tmp_path):
    hub.served["RWKV-7.pth"] = WEIGHTS + b"more"

    with pytest.raises(Missing, match=rf"cannot download {REPO}: .*should be of size 102400 but has size 102404"):
        fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent)

    del hub.served["RWKV-7.pth"]
    assert fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent).read_bytes() == WEIGHTS


def model_folder(hub: Hub) -> dict[str, bytes]:
    files = {
        "config.json": b"{}",
        "model-00001-of-00002.safetensors": WEIGHTS,
        "model-00002-of-00002.safetensors": WEIGHTS[::-1],
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "rwkv_vocab_v20230424.txt": b"1 '\\x00' 1\n",
        "tokenizer_config.json": b"{}",
    }
    hub.repositories["RWKV/m"] = files | {"modeling.py": b"code", "pytorch_model.bin": b"old", "x/config.json": b"{}"}
    return files


def test_a_model_folder_brings_settings_weights_and_vocabulary_but_no_code(hub, tmp_path):
    files = model_folder(hub)

    path = fetch("RWKV/m", into=tmp_path, progress=silent)

    assert path == tmp_path / "m"
    assert {file.name: file.read_bytes() for file in path.iterdir()} == files


def test_an_incomplete_model_folder_has_no_config(hub, tmp_path):
    model_folder(hub)
    hub.served["model-00002-of-00002.safetensors"] = WEIGHTS

    with pytest.raises(BadCheckpoint, match="model-00002-of-00002"):
        fetch("RWKV/m", into=tmp_path, progress=silent)
    assert (tmp_path / "m" / "model-00001-of-00002.safetensors").exists()
    assert not (tmp_path / "m" / "config.json").exists()


def test_a_folder_of_checkpoints_is_no_model_folder(hub):
    with pytest.raises(WrongCall, match=f"{REPO} is not a model folder") as caught:
        fetch(REPO, progress=silent)
    assert "RWKV-7.pth, old/RWKV-7-old.pth" in caught.value.hint


def test_a_wrong_file_name_gets_a_suggestion(hub):
    with pytest.raises(WrongCall, match=r"has no file 'RWKV7\.pth'") as caught:
        fetch(f"{REPO}/RWKV7.pth", progress=silent)
    assert caught.value.hint.startswith("did you mean 'RWKV-7.pth'?")


def test_unknown_repositories_and_revisions_are_named(hub):
    with pytest.raises(WrongCall, match=r"has no repository BlinkDL/rwkv-9, or it is private"):
        fetch("BlinkDL/rwkv-9/a.pth", progress=silent)
    with pytest.raises(WrongCall, match=f"{REPO} has no revision 'v3'"):
        fetch(f"{REPO}/RWKV-7.pth", revision="v3", progress=silent)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [(403, "GatedRepo", "RWKV/g is gated"), (500, "", "answered 500 for RWKV/g"), (403, "", "answered 403 for RWKV/g")],
)
def test_refusals_of_the_hub_are_sentences(hub, status, code, says):
    hub.refused["RWKV/g"] = (status, code)

    with pytest.raises(Missing, match=says):
        fetch("RWKV/g/a.pth", progress=silent)


def test_a_login_page_in_place_of_the_hub_is_recognised(hub):
    hub.refused["RWKV/g"] = (200, "")

    with pytest.raises(Missing, match="does not answer as a Hugging Face Hub does"):
        fetch("RWKV/g/a.pth", progress=silent)


@pytest.mark.parametrize(
    "reference",
    ["model.pth", "https://huggingface.co/BlinkDL/rwkv-7-world", "BlinkDL/", "/models/model.pth", "a/b/../c", "a/b/"],
)
def test_what_is_no_reference_is_refused_without_asking_the_hub(hub, reference):
    with pytest.raises(WrongCall, match="is not OWNER/REPO/FILE or OWNER/REPO"):
        fetch(reference, progress=silent)
    assert hub.requests == []


def test_impossible_repository_names_are_refused(hub):
    with pytest.raises(WrongCall, match="not a repository name"):
        fetch("Blink DL/rwkv/a.pth", progress=silent)


def test_offline_a_complete_file_is_used_and_a_missing_one_explained(hub, tmp_path, monkeypatch):
    fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent).read_bytes() == WEIGHTS
    with pytest.raises(Missing, match=r"cannot reach .* and .*other\.pth is not here") as caught:
        fetch(f"{REPO}/other.pth", into=tmp_path, progress=silent)
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_hub_that_is_not_there_is_named(hub, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")

        with pytest.raises(Missing, match=r"cannot reach http://127\.0\.0\.1:\d+"):
            fetch(f"{REPO}/RWKV-7.pth", progress=silent)


def test_too_small_a_disk_is_noticed_before_the_download(hub, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)

    with pytest.raises(Missing, match="has 1,000 bytes free, the download needs 102,400"):
        fetch(f"{REPO}/RWKV-7.pth", into=tmp_path, progress=silent)
    assert ranges(hub) == []


def test_hf_endpoint_is_respected(hub, tmp_path):
    script = (
        "from pathlib import Path\nfrom exporter.fetch import fetch\nfrom exporter.progress import silent\n"
        f"print(fetch('{REPO}/RWKV-7.pth', into=Path('.'), progress=silent))"
    )
    environment = os.environ | {"HF_ENDPOINT": constants.ENDPOINT, "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}

    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert done.stdout.strip() == "RWKV-7.pth", done.stderr
    assert (tmp_path / "RWKV-7.pth").read_bytes() == WEIGHTS
