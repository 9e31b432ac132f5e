"""Commands in cards and records have no secrets and no folders of anybody's machine."""

import time

import pytest

from dspark_hf.commands import hide_secrets, shorten_command
from dspark_hf.provenance import command_line


@pytest.mark.parametrize(
    ("command", "short"),
    [
        ("python train.py --data a.jsonl", "python train.py --data a.jsonl"),
        ("dspark push /tmp/x/run org/repo --token hf_AbC123456", "dspark push run org/repo --token ***"),
        ("a --hub_token=abc --api-key k", "a --hub_token=*** --api-key ***"),
        ("dspark train training.hub_token=abc max_steps=3", "dspark train training.hub_token=*** max_steps=3"),
        ("a eval_max_new_tokens=9 --max-new-tokens 8", "a eval_max_new_tokens=9 --max-new-tokens 8"),
        ("a ../b/c.json ~/d/e ./f", "a c.json e f"),
        ("a --out=/r/s/t.json runs/first https://example.org/x", "a --out=t.json runs/first https://example.org/x"),
        ("a 'data=[/x/y/a.jsonl,/z/b.jsonl]' '/home/A B/c d.json'", "a 'data=[a.jsonl,b.jsonl]' 'c d.json'"),
        ("a 'training={hub_token: abc, max_steps: 3}'", "a 'training={hub_token: ***'"),
        ("""a 'training={"hub_token": "a, b"}'""", """a 'training={"hub_token": ***'"""),
        ("""a 'training={hub_token: '"'"'a, b'"'"'}'""", "a 'training={hub_token: ***'"),
        ("a https://user:pw@host/x sk-abcdefgh1234", "a https://***@host/x ***"),
        ("a 'https://x.org/?token=abc&n=1'", "a 'https://x.org/?***'"),
        ("a --passwd x --pat y --api_key 'a b' z", "a --passwd *** --pat *** --api_key *** z"),
        (
            "OPENAI_API_KEY=abc a 'api_key=a b' --header 'Authorization: Bearer abc'",
            "OPENAI_API_KEY=*** a api_key=*** --header 'Authorization: ***'",
        ),
        (
            "a compat=x --path y --early_stopping_patience 3 --author z",
            "a compat=x --path y --early_stopping_patience 3 --author z",
        ),
        ("a 'not closed --token", "a 'not closed --token"),
        ("a --token --dry-run", "a --token --dry-run"),
        # What is hidden has no end within its argument, whatever it consists of.
        ("""a '{"token": ["b", "c"]}' 'd=x;token=e,f' --key=g,h""", """a '{"token": ***' 'd=x;token=***' --key=***"""),
        ("a https://user:p@ss@host/x http://u:p/q@host:1/v1", "a https://***@host/x http://***@host:1/v1"),
        (
            "a 'https://host/x?sig=b&X-Amz-Signature=c#d' https://host/y#z",
            "a 'https://host/x?***' 'https://host/y#***'",
        ),
        ("a file:///home/me/x s3://bucket/private/y hf://datasets/org/z", "a x y hf://datasets/org/z"),
        ("a me@host:/srv/private/x runs:/home/me/y ~me/private/z C:\\Users\\me\\w", "a x y z w"),
        (
            "a runs/../../me/x '--out=/home/A B/c d.json' '{\"a\": \"/home/me/b\"}'",
            "a x '--out=c d.json' '{\"a\": \"b\"}'",
        ),
        (
            "a --server-key b --key c --bearer d --cookie e --pass f",
            "a --server-key *** --key *** --bearer *** --cookie *** --pass ***",
        ),
        ("a -H 'x-api-key: b c' -H Authorization: Bearer d", "a -H 'x-api-key: ***' -H Authorization: *** ***"),
        ("a eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc xoxb-1234-abcd AIzaSyA-1234567890", "a *** *** ***"),
        ("a https://hooks.org/T00000000/abcdefghijklmnopqrstuvw1 b", "a https://hooks.org/T00000000/*** b"),
        (
            "a Qwen/Qwen3-4B-Instruct-2507 org/data:train 'Why / how?' a\\ b",
            "a Qwen/Qwen3-4B-Instruct-2507 org/data:train 'Why / how?' a\\ b",
        ),
    ],
)
def test_commands_lose_secrets_and_places(command, short):
    assert shorten_command(command) == short
    assert shorten_command(short) == short


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (
            "dspark evaluate --drafter /home/me/run --task ../chat.jsonl",
            "dspark evaluate --drafter /home/me/run --task ../chat.jsonl",
        ),
        (
            "a --target https://user:hf_AbC123456@host/x s3://me:pw@bucket/y --hub-token=b",
            "a --target https://***@host/x s3://***@bucket/y --hub-token=***",
        ),
    ],
)
def test_a_command_to_run_again_loses_secrets_only(command, kept, monkeypatch):
    assert hide_secrets(command) == kept
    assert hide_secrets(kept) == kept
    monkeypatch.setattr("sys.argv", ["/bin/dspark", *command.split()[1:]])
    assert command_line() == f"dspark {kept.partition(' ')[2]}"


HOSTILE = ("a.token", "token=", "a", "a ", "' ", '"\\"', "{token:", "http://", "http://a@", "/a", "[/a,", "a: ", "1a")


@pytest.mark.parametrize("part", HOSTILE)
def test_the_time_grows_with_the_length(part):
    """What others wrote takes a fraction of a second, where time that grows with the square takes hours."""
    start = time.process_time()
    shorten_command(part * 40_000)
    hide_secrets(part * 40_000)
    assert time.process_time() - start < 60
