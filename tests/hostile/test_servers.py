"""Servers that drip, flood, echo the key, send elsewhere or count wrongly: one answer fails, the run goes on."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.data.regeneration.server import ServerAnswerer, regenerate_with_server

KEY = "sk-0123456789-secret"


def reply(content="an answer", usage=None, **extra):
    message = {"role": "assistant", "content": content, **extra}
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    """Does what the question says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        self.server.asked.append((question, self.path))
        try:
            getattr(self, question.split()[0], self.fine)()
        except OSError:
            self.close_connection = True  # the client has gone, as it should

    def fine(self):
        self.send(reply())

    def send(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def endless(self, chunk, pause=0.0, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.close_connection = True
        while not self.server.is_over.is_set():
            self.wfile.write(chunk)
            time.sleep(pause)

    def drip(self):
        self.endless(b" ", pause=0.05)

    def flood(self):
        self.endless(b" " * 2**16)

    def flood_of_error(self):
        self.endless(b"e" * 2**16, status=400)

    def bomb(self):
        self.send(gzip.compress(b" " * 2**24), Content_Encoding="gzip")

    def elsewhere(self):
        self.send(b"", 307, Location=f"http://127.0.0.1:{self.server.server_port}/elsewhere")

    def echo(self):
        self.send({"error": {"message": f"Wrong key: {self.headers['Authorization']} " + "e" * 100_000}}, 401)

    def echo_far(self):
        self.send({"error": {"message": "e" * 489 + self.headers["Authorization"]}}, 401)

    def echo_as_reply(self):
        self.send({"note": "e" * 150 + self.headers["Authorization"]})

    def echo_as_answer(self):
        self.send(reply(f"Your key is {self.headers['Authorization']}"))

    def echo_as_thought(self):
        self.send(reply(reasoning_content=f"The key is {self.headers['Authorization']}"))

    def long(self):
        self.send(reply("a" * 10_000))

    def long_thought(self):
        self.send(reply(reasoning_content="a" * 10_000))

    def many(self):
        self.send(
            b'{"choices":[{"message":{"content":"an answer"}}],"usage":{"completion_tokens":1%s}}' % (b"0" * 400)
        )

    def negative(self):
        self.send(reply(usage={"completion_tokens": -(10**30)}))

    def no_number(self):
        self.send(b'{"choices":[{"message":{"content":"an answer"}}],"usage":{"completion_tokens":Infinity}}')

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    # All questions come at once; five may wait by default, and more are turned away where threads are late to accept.
    request_queue_size = 64
    daemon_threads = True


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.is_over = [], threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.is_over.set()
    server.shutdown()
    server.server_close()


def ask(server, out, *questions, **options):
    options = {"max_new_tokens": 8, "api_key": KEY, "max_retries": 0, **options}
    answerer = ServerAnswerer(f"http://127.0.0.1:{server.server_port}/v1", "m", **options)
    conversations = [[{"role": "user", "content": question}] for question in questions]
    return regenerate_with_server(answerer, conversations, out, progress=False)


def reasons(out):
    path = out.with_name(out.name + ".failed.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {record["messages"][0]["content"]: record["reason"] for record in map(json.loads, lines)}


FAILURES = {
    "flood": "OpenAIError: The reply has more than 1052672 bytes",
    "flood_of_error": "OpenAIError: The reply has more than 1052672 bytes",
    "bomb": "OpenAIError: The reply is compressed ('gzip')",
    "elsewhere": "OpenAIError: The server sends to 'http://127.0.0.1:",
    "echo": "Wrong key: Bearer ***",
    "echo_far": "AuthenticationError: Error code: 401",
    "echo_as_reply": "Bearer ***",
    "echo_as_answer": "The answer repeats the server's key",
    "echo_as_thought": "The answer repeats the server's key",
    "long": "The answer has 10000 characters, far more than max_new_tokens=8 can be",
    "long_thought": "The answer has 10009 characters, far more",
}


def test_every_failure_is_one_of_its_own(server, tmp_path):
    out = tmp_path / "out.jsonl"
    assert ask(server, out, "fine", *FAILURES, "fine again") == (2, len(FAILURES))
    found = reasons(out)
    for question, reason in FAILURES.items():
        assert reason in found[question], found[question]
        assert len(found[question]) < 600
    kept = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir() if path.is_file()]
    assert not any("0123456789" in text for text in kept), "the key, or a part of it, is in a file"
    assert {path for _, path in server.asked} == {"/v1/chat/completions"}, "a redirect was followed"


def test_the_limit_of_time_is_for_the_whole_answer(server, tmp_path):
    # Something comes twenty times a second, so no single wait is long.
    assert ask(server, tmp_path / "out.jsonl", "fine", "drip", timeout=5) == (1, 1)
    assert "No answer came within timeout=5 seconds" in reasons(tmp_path / "out.jsonl")["drip"]


def test_counts_of_any_kind_stop_nothing(server, tmp_path):
    questions = ["many", "negative", "no_number", "fine"]
    assert ask(server, tmp_path / "out.jsonl", *questions) == (4, 0)
    assert len(load_conversations(tmp_path / "out.jsonl")) == 4


def test_the_message_of_a_run_has_no_key(server, tmp_path):
    with pytest.raises(ValueError, match=r"No conversation was answered.*Wrong key: Bearer \*\*\*") as caught:
        ask(server, tmp_path / "out.jsonl", "echo")
    assert "0123456789" not in str(caught.value) and len(str(caught.value)) < 700


def test_placeholders_are_no_secrets(server, tmp_path):
    # Servers without keys are given a word, which answers may hold.
    assert ask(server, tmp_path / "out.jsonl", "echo_as_answer", api_key="EMPTY") == (1, 0)


def test_the_cause_of_an_error_is_told(tmp_path):
    answerer = ServerAnswerer("http://127.0.0.1:9/v1", "m", max_retries=0)
    with pytest.raises(ValueError, match="APIConnectionError: .*Connect"):
        regenerate_with_server(answerer, [[{"role": "user", "content": "a"}]], tmp_path / "x.jsonl", progress=False)
