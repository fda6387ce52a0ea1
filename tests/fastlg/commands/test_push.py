"""``fastlg export --push-to-hub`` against a stand-in of the Hub on this machine: the files arrive whole."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from refusals import refused

pytest.importorskip("huggingface_hub")
NAME = "somebody/my-model"


class Hub(BaseHTTPRequestHandler):
    """What the client asks for on its way to a commit; every file travels inside of that."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        server.asked.append(self.path)
        if server.refuses:
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            return self.answer({"url": f"{server.address}/{NAME}", "id": NAME, "name": NAME})
        if self.path.endswith("/preupload/main"):
            names = [own["path"] for own in json.loads(body)["files"]]
            own = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer({"files": own})
        if "/commit/main" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{server.address}/{NAME}/commit/{'a' * 40}"
            return self.answer({"commitUrl": address, "commitOid": "a" * 40, "success": True})
        return self.answer({})

    def do_GET(self):
        self.server.asked.append(self.path)
        self.answer({"siblings": [], "id": NAME, "sha": "b" * 40, "fullname": "somebody", "name": "somebody"})

    do_HEAD = do_GET

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.created, server.files, server.refuses = [], [], {}, False
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_pushed_is_what_was_exported(project, fastlg, stand_in):
    assert fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1")[0] == 0
    refused(fastlg("export", "runs/student", "out", "--push-to-hub", "me"), "--push-to-hub is me", "OWNER/NAME")
    assert not (project / "out").exists() and stand_in.asked == []

    status, out, err = fastlg("export", "runs/student", "out", "--push-to-hub", NAME)
    assert status == 0 and f"{stand_in.address}/{NAME}" in out, err
    wrote = {path.name: path.read_bytes() for path in (project / "out").iterdir()}
    assert stand_in.files == wrote and set(wrote) == {"README.md", "config.json", "model.safetensors"}
    (created,) = stand_in.created
    assert created["name"] == "my-model" and created["organization"] == "somebody"

    stand_in.refuses = True
    result = fastlg("export", "runs/student", "again", "--push-to-hub", NAME)
    refused(result, f"cannot push again to {NAME}", "the export is whole", "hf upload", status=1)
    assert (project / "again" / "model.safetensors").is_file()
