"""The server answers as the target does, tells what became of drafts, and lives through bad clients."""

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForCausalLM, AutoTokenizer

MESSAGES = [{"role": "user", "content": "Count to five, please."}]


@pytest.fixture(scope="module")
def expected(tiny_target_dir):
    """What the target alone answers to a chat, greedily."""
    target, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_target_dir),
        AutoTokenizer.from_pretrained(tiny_target_dir),
    )

    def answer(messages, max_new_tokens):
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = target.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
        return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


def whole(text):
    """Without the beginning of a character at the end, which transformers streams only when it is complete."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def metrics(server):
    text = httpx.get(f"{server[0]}/metrics").text
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_answers_and_usage(server, client, expected):
    before = metrics(server)
    answer = client.chat.completions.create(model=server[1], messages=MESSAGES, max_tokens=24, temperature=0)
    assert answer.choices[0].message.content == expected(MESSAGES, 24)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 24
    details, after = answer.usage.completion_tokens_details, metrics(server)
    verified = after["dspark_verified_tokens_total"] - before["dspark_verified_tokens_total"]
    assert verified == details.accepted_prediction_tokens + details.rejected_prediction_tokens > 0
    assert after["dspark_generated_tokens_total"] - before["dspark_generated_tokens_total"] == 24
    assert after["dspark_tau"] >= 1


def test_streams(server, client, expected):
    chunks = list(client.chat.completions.create(
        model=server[1], messages=MESSAGES, max_tokens=24, temperature=0, stream=True
    ))  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole(text) == whole(expected(MESSAGES, 24)) and chunks[-1].choices[0].finish_reason == "length"
    # Where drafts do not pay there are none.
    details = chunks[-1].usage.completion_tokens_details
    assert details.accepted_prediction_tokens >= 0 and details.rejected_prediction_tokens >= 0


def test_completions(server, client, tiny_target_dir):
    target, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_target_dir),
        AutoTokenizer.from_pretrained(tiny_target_dir),
    )
    ids = tokenizer("Once upon", return_tensors="pt")
    out = target.generate(**ids, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    answer = client.completions.create(model=server[1], prompt="Once upon", max_tokens=12, temperature=0)
    assert answer.choices[0].text == text and answer.usage.completion_tokens_details.rejected_prediction_tokens >= 0
    chunks = list(client.completions.create(
        model=server[1], prompt="Once upon", max_tokens=12, temperature=0, stream=True
    ))  # fmt: skip
    assert whole("".join(chunk.choices[0].text for chunk in chunks)) == whole(text)


def test_eight_users_at_once(server, client, expected):
    chats = [[{"role": "user", "content": f"Question {number}: {'why? ' * number}"}] for number in range(8)]

    def ask(number):
        streams = number % 2 == 0
        answer = client.chat.completions.create(
            model=server[1], messages=chats[number], max_tokens=16, temperature=0, stream=streams
        )
        if not streams:
            return answer.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert [whole(answer) for answer in answers] == [whole(expected(chat, 16)) for chat in chats]


def test_sampling_and_greedy_requests_side_by_side(server, client, expected):
    def ask(temperature):
        answer = client.chat.completions.create(
            model=server[1], messages=MESSAGES, max_tokens=16, temperature=temperature, top_p=0.9
        )
        return answer.choices[0].message.content

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [0, 1.0, 0, 1.5, 2.0, 0]))
    assert {answers[place] for place in (0, 2, 5)} == {expected(MESSAGES, 16)}
    assert len({answers[place] for place in (1, 3, 4)} - {answers[0]}) == 3


def test_stop(server, client, expected):
    text = expected(MESSAGES, 24)
    stop = next(char for char in text[3:] if char.isascii() and char not in text[:3])
    options = {"model": server[1], "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    for stops in (stop, [stop], ["nowhere", stop]):
        answer = client.chat.completions.create(**options, stop=stops)
        assert answer.choices[0].message.content == text[: text.index(stop)]
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens < 24
    chunks = list(client.chat.completions.create(**options, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    # What only begins as a stop text does is not kept back.
    chunks = list(client.chat.completions.create(**options, stop=text[-2:] + "nowhere", stream=True))
    assert whole("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) == whole(text)
    answer = client.completions.create(model=server[1], prompt="Once upon", max_tokens=24, temperature=0)
    stop = next(char for char in answer.choices[0].text[3:] if char.isascii())
    cut = client.completions.create(model=server[1], prompt="Once upon", max_tokens=24, temperature=0, stop=stop)
    assert cut.choices[0].text == answer.choices[0].text[: answer.choices[0].text.index(stop)]


def test_seeds(server, client):
    def ask(seed, **options):
        answer = client.chat.completions.create(
            model=server[1], messages=MESSAGES, max_tokens=16, temperature=1.0, seed=seed, **options
        )
        return answer.choices[0].message.content

    with ThreadPoolExecutor(4) as pool:
        first, second, other, unseeded = pool.map(ask, [7, 7, 8, None])
    assert first == second and len({first, other, unseeded}) == 3
    assert ask(7) == first and ask(None) != unseeded


def test_tools_reach_the_template(server, client, expected):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    answer = client.chat.completions.create(
        model=server[1], messages=MESSAGES, max_tokens=8, temperature=0, tools=[tool]
    )
    # This template says nothing of tools.
    assert answer.choices[0].message.content == expected(MESSAGES, 8)


def test_a_client_that_leaves(server, client, expected):
    before = metrics(server)["dspark_generated_tokens_total"]
    for _ in range(3):
        stream = client.chat.completions.create(
            model=server[1], messages=MESSAGES, max_tokens=400, temperature=0, stream=True
        )
        next(iter(stream)), next(iter(stream))
        stream.close()
    answer = client.chat.completions.create(model=server[1], messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == expected(MESSAGES, 8)
    # An answer is read before its request is taken off, which a busy machine may do a little later.
    until = time.monotonic() + 20
    while server[3] and metrics(server)["dspark_running_requests"] and time.monotonic() < until:
        time.sleep(0.05)
    if server[3]:
        assert metrics(server)["dspark_running_requests"] == 0
    # Nobody makes what nobody reads.
    assert metrics(server)["dspark_generated_tokens_total"] - before < 3 * 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": ["hello"]}, r"messages\[0\] must be an object with a role"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].content must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of the type text"),
        ({"temperature": -1}, "temperature must be a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"max_tokens": 0}, "max_tokens must be a positive whole number"),
        ({"n": 2}, "n=2 is not supported"),
        ({"logprobs": True}, "logprobs=True is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop": [""]}, "stop must be a text"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"seed": 1.5}, "seed"),
        ({"model": "another"}, "Server is pinned to"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "The prompt has 60. tokens, and the model takes 512"),
    ],
)
def test_bad_requests(server, change, message):
    import re

    body = {"model": server[1], "messages": MESSAGES, "max_tokens": 4} | change
    for streams in (False, True):
        answer = httpx.post(f"{server[0]}/v1/chat/completions", json=body | {"stream": streams}, timeout=60)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        is_refused = server[3] and set(change) & {"logit_bias"}
        assert is_refused or re.search(message, error["message"]), error
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 5000])
def test_bodies_that_are_no_objects(server, content):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server[0]}/v1/chat/completions", content=content, headers=headers, timeout=60)
    assert 400 <= answer.status_code < 500 and "error" in answer.json()


def malformed(rng, model):
    """A body in which something is wrong, or nothing."""
    odd = [None, True, -1, 0, 1e308, "x", "", [], {}, [None], {"a": []}, "\ud800", "é" * 50, [[]], 2**70, [{}], 0.5]
    body = {"model": model, "messages": MESSAGES, "max_tokens": rng.randint(1, 3)}
    names = ["model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "stream",
             "seed", "tools", "logit_bias", "generation_config", "chat_template_kwargs", "n", "frequency_penalty",
             "response_format", "unknown_field", "prompt", "tool_choice", "user", "metadata"]  # fmt: skip
    for name in rng.sample(names, rng.randint(1, 3)):
        body[name] = rng.choice(odd)
    if rng.random() < 0.3:
        parts = ["user", "system", "tool", "", 3, None, {}, [], "x" * 2000, [{"type": "text", "text": 1}]]
        body["messages"] = [
            {"role": rng.choice(parts), "content": rng.choice(parts)} for _ in range(rng.randint(0, 3))
        ]
    return body


def check_malformed(server, client, expected, num_requests):
    rng, statuses = random.Random(0), []
    with httpx.Client(timeout=60) as http:
        for _ in range(num_requests):
            path = rng.choice(["chat/completions", "chat/completions", "completions"])
            body = malformed(rng, server[1])
            content = json.dumps(body)
            if rng.random() < 0.1:
                content = content[: rng.randint(0, len(content))]
            answer = http.post(f"{server[0]}/v1/{path}", content=content, headers={"content-type": "application/json"})
            assert answer.status_code < 500, (body, answer.text)
            statuses.append(answer.status_code)
    assert sum(status >= 400 for status in statuses) > num_requests / 2
    assert httpx.get(f"{server[0]}/health").status_code == 200
    answer = client.chat.completions.create(model=server[1], messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == expected(MESSAGES, 8)


def test_malformed_requests(server, client, expected):
    check_malformed(server, client, expected, 40)


@pytest.mark.slow
def test_five_hundred_malformed_requests(server, client, expected):
    check_malformed(server, client, expected, 500)


def test_a_step_that_fails(server, client, expected, monkeypatch):
    """That request fails, and the server lives."""
    model = server[2].models.model
    plain, is_armed = type(model).forward, threading.Event()

    def forward(self, *args, **kwargs):
        if is_armed.is_set():
            is_armed.clear()
            raise torch.OutOfMemoryError('out of "memory"')
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)
    is_armed.set()
    with pytest.raises(openai.InternalServerError, match="memory"):
        client.chat.completions.create(model=server[1], messages=MESSAGES, max_tokens=8, temperature=0)
    is_armed.set()
    with pytest.raises(openai.APIError, match="during streaming") as told:
        list(client.chat.completions.create(model=server[1], messages=MESSAGES, max_tokens=8, stream=True))
    assert told.value.body == "out of 'memory'"
    answer = client.chat.completions.create(model=server[1], messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == expected(MESSAGES, 8)
    assert httpx.get(f"{server[0]}/health").json() == {"status": "ok"}


def test_models_are_listed(server, client):
    assert [model.id for model in client.models.list()] == [server[1]]


def test_a_release_that_serves_otherwise_is_told(monkeypatch):
    from dspark_hf.serving.server import app

    monkeypatch.delattr(app.ModelManager, "_load_model")
    with pytest.raises(RuntimeError, match="ModelManager._load_model is missing. Install one that it is tested with"):
        app.make_serving("embedded")
