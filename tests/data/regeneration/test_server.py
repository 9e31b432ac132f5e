"""Answers from a real HTTP server that speaks the OpenAI protocol, and fails like one."""

import json
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from dspark_hf.cli.main import app
from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.data.regeneration.server import ServerAnswerer, regenerate_with_server

NESTED = b"[" * 100_000
QUESTIONS = [[{"role": "user", "content": f"question {number}"}] for number in range(12)]


class ChatServer(ThreadingHTTPServer):
    """Answers "answer to <last question>"; `rules` maps words in a question to how it fails."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.rules, self.failures = [], {}, {}
        self.under_way, self.most_under_way, self.lock = 0, 0, threading.Lock()
        self.gate = threading.Barrier(1)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, question = self.server, body["messages"][-1]["content"]
        with server.lock:
            server.requests.append((self.path, self.headers.get("Authorization"), body))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            if server.gate.parties > 1:
                server.gate.wait(timeout=300)
        finally:
            # Before the answer, behind which the next question may come at once.
            with server.lock:
                server.under_way -= 1
        self.reply(question, server)

    def reply(self, question, server):
        rule = next((value for word, value in server.rules.items() if word in question), {})
        with server.lock:
            failed = server.failures[question] = server.failures.get(question, 0) + 1
        if failed <= rule.get("times", 0):
            return self.send(rule["status"], {"error": {"message": "no luck"}})
        if "reply" in rule:
            return self.send(200, rule["reply"])
        message = {
            "role": "assistant",
            "content": rule.get("content", f"answer to {question}"),
            **rule.get("extra", {}),
        }
        choice = {"index": 0, "message": message, "finish_reason": rule.get("finish_reason", "stop")}
        usage = {"completion_tokens": 4, "prompt_tokens": 2, "total_tokens": 6}
        self.send(200, {"id": "x", "created": 0, "model": "m", "choices": [choice], "usage": usage})

    def send(self, status, content):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-another-server")
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def answer(server, out, questions=QUESTIONS, **options):
    of_run = {name: options.pop(name) for name in ("seed", "limit", "concurrency", "resume") if name in options}
    answerer = ServerAnswerer(server.url, "org/target", **options)
    return regenerate_with_server(answerer, questions, out, progress=False, **of_run)


def failures(out):
    lines = out.with_name(out.name + ".failed.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_question_is_answered_once(server, tmp_path):
    out = tmp_path / "out.jsonl"
    assert answer(server, out, seed=3, max_new_tokens=7, temperature=0.5, thinking=False) == (12, 0)
    records = load_conversations(out)
    assert {tuple(m["content"] for m in r["messages"]) for r in records} == {
        (f"question {n}", f"answer to question {n}") for n in range(12)
    }
    assert all(record["complete"] and record["thinking"] is False for record in records)
    path, authorization, body = server.requests[0]
    assert path == "/v1/chat/completions" and len(server.requests) == 12
    sent = {"model": "org/target", "max_tokens": 7, "temperature": 0.5, "seed": 3}
    assert sent.items() <= body.items() and body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "secret" not in authorization, "a key is sent where it was given for"
    provenance = json.loads((tmp_path / "out.jsonl.provenance.json").read_text())
    assert provenance["settings"]["target"] == "org/target" and provenance["settings"]["thinking"] is False


def test_requests_run_at_once_up_to_the_limit(server, tmp_path):
    server.gate = threading.Barrier(3)  # nobody is answered before three are waiting
    assert answer(server, tmp_path / "out.jsonl", concurrency=3) == (12, 0)
    assert server.most_under_way == 3


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_turns_are_answered_in_order_until_one_is_cut_off(server, tmp_path, reason):
    server.rules = {"long": {"finish_reason": reason}, "think": {"extra": {"reasoning_content": "hm"}}}
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "think first"},
             {"role": "assistant", "content": "not the target's"}, {"role": "user", "content": "long second"},
             {"role": "user", "content": "third"}]  # fmt: skip
    out = tmp_path / "out.jsonl"
    assert answer(server, out, [turns]) == (1, 0)
    (record,) = load_conversations(out)
    assert [m["content"] for m in record["messages"]] == [
        "be brief", "think first", "answer to think first", "long second", "answer to long second"
    ]  # fmt: skip
    assert record["messages"][2]["reasoning_content"] == "hm" and not record["complete"]


def test_busy_server_is_asked_again(server, tmp_path):
    server.rules = {"question 5": {"times": 2, "status": 429}, "question 6": {"times": 1, "status": 503}}
    assert answer(server, tmp_path / "out.jsonl") == (12, 0)
    assert len(server.requests) == 15


def test_failures_are_kept_with_their_reason_and_tried_again(server, tmp_path):
    out = tmp_path / "out.jsonl"
    server.rules = {"question 5": {"times": 99, "status": 500}, "question 6": {"times": 99, "status": 400},
                    "question 7": {"content": "  "}}  # fmt: skip
    assert answer(server, out, max_retries=1) == (9, 3)
    reasons = {failure["messages"][0]["content"]: failure["reason"] for failure in failures(out)}
    assert "500" in reasons["question 5"] and "400" in reasons["question 6"] and "no text" in reasons["question 7"]
    asked = [body["messages"][0]["content"] for _, _, body in server.requests]
    assert asked.count("question 5") == 2 and asked.count("question 6") == 1, "a bad request stays bad"
    server.rules = {}
    with pytest.raises(ValueError, match="exists. Continue it with resume"):
        answer(server, out)
    assert answer(server, out, resume=True) == (12, 0)
    assert len(server.requests) == len(asked) + 3
    assert not out.with_name("out.jsonl.failed.jsonl").exists()


NO_ANSWERS = [
    ([1, 2], r"The server's reply is no chat completion: \[1, 2\]"),
    (None, "no chat completion: None"),
    ({"choices": []}, "no chat completion"),
    ({"error": {"message": "overloaded"}}, "no chat completion: .*overloaded"),
    ({"choices": [{"message": None}]}, "no chat completion"),
    ({"choices": [{"message": {"content": [{"type": "text"}]}}]}, "Expected each message to be"),
    ({"choices": [{"message": {"content": "half \ud83d"}}]}, "half of a surrogate pair"),
    ({"choices": [{"message": {"content": "a", "reasoning": "half \ud83d"}}]}, "half of a surrogate pair"),
    ({"choices": [{"message": {"content": "a", "reasoning_content": [1]}}]}, "Expected each message to be"),
    ({"choices": {"0": {}}}, "no chat completion"),
    (NESTED, "RecursionError"),
]


def test_reply_that_is_no_answer_is_a_failure_of_its_own(server, tmp_path):
    server.rules = {f"question {20 + number}": {"reply": reply} for number, (reply, _) in enumerate(NO_ANSWERS)}
    odd = [[{"role": "user", "content": question}] for question in server.rules]
    assert answer(server, tmp_path / "out.jsonl", [*QUESTIONS, *odd]) == (12, len(NO_ANSWERS))
    reasons = {failure["messages"][0]["content"]: failure["reason"] for failure in failures(tmp_path / "out.jsonl")}
    for question, (_, reason) in zip(server.rules, NO_ANSWERS, strict=True):
        assert re.search(reason, reasons[question])


def test_counts_that_are_no_numbers_are_left_out(server, tmp_path):
    reply = {"choices": [{"message": {"content": "an answer"}}], "usage": {"completion_tokens": "four"}}
    server.rules = {"question 5": {"reply": reply}}
    assert answer(server, tmp_path / "out.jsonl") == (12, 0)


def test_odd_conversations_are_kept_aside(server, tmp_path):
    user = {"role": "user", "content": "question 1"}
    odd = [[], [{"role": "system", "content": "a"}], [{**user, "content": " "}], [{**user, "content": None}], 7]
    out = tmp_path / "out.jsonl"
    assert answer(server, out, [*odd, [{"role": "system", "content": ""}, user]]) == (1, 5)
    (record,) = load_conversations(out)
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    assert [failure["messages"] for failure in failures(out)] == odd


def test_run_stops_where_everything_fails(server, tmp_path):
    questions = [[{"role": "user", "content": f"{number}"}] for number in range(150)]
    server.rules = {"": {"times": 999, "status": 401}}
    out = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="100 conversations in a row were not answered, the last one .* 401"):
        answer(server, out, questions)
    server.rules = {}
    assert answer(server, out, questions, resume=True) == (150, 0)


def test_absent_server_is_reported(tmp_path):
    # A port that nobody else can take, and where nobody listens.
    with (
        socket.socket() as closed,
        pytest.raises(ValueError, match="No conversation was answered; the last reason: APIConnectionError"),
    ):
        closed.bind(("127.0.0.1", 0))
        answerer = ServerAnswerer(f"http://127.0.0.1:{closed.getsockname()[1]}/v1", "m", max_retries=1)
        regenerate_with_server(answerer, QUESTIONS, tmp_path / "x.jsonl", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency must be positive, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
        ({"timeout": 0}, "timeout must be positive"),
        ({"limit": 0}, "limit must be positive"),
        ({"max_retries": -1}, "max_retries must not be negative, got -1"),
        ({"temperature": -1.0}, "temperature must be 0"),
    ],
)
def test_bad_settings_are_refused(server, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        answer(server, tmp_path / "out.jsonl", **options)
    assert not (tmp_path / "out.jsonl").exists() and not server.requests


def test_missing_client_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install dspark_hf\[server\]"):
        answer(server, tmp_path / "out.jsonl")


def test_address_must_be_one():
    with pytest.raises(ValueError, match="Expected the server's address, like http://localhost:8000/v1, got 'here'"):
        ServerAnswerer("here", "m")


def test_command_asks_the_server(server, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"turns": [m[0]["content"]]}) + "\n" for m in QUESTIONS))
    server.rules = {"question 3": {"times": 9, "status": 400}}
    arguments = ["regenerate", "--target", "org/target", "--server", server.url, "--prompts", prompts, "--out", out,
                 "--limit", 6, "--api-key", "key"]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "1 conversations failed: see" in result.output and f"{out}: 5 conversations" in result.output
    assert {authorization for _, authorization, _ in server.requests} == {"Bearer key"}
    result = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--resume", "--timeout", 0]])
    assert result.exit_code != 0 and "timeout must be" in result.output
    result = CliRunner().invoke(app, ["regenerate", "--synthesize", "3", "--server", server.url, "--out", str(out)])
    assert result.exit_code == 2 and "--limit and --server go with --prompts" in result.output
